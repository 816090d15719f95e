"""ADBM: bridge coefficients, the two ends of the bridge, the attack with fixed t and z."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastpure.train.batches import Purpose, StepRandom
from fastpure.train.losses import AdbmLoss, Bridge, ContinuousTimes
from fastpure.train.losses.base import inner_network
from tests.train.helpers import RoughDenoiser, batch_of, fresh, guide

TIMES = ContinuousTimes()


def _bridge(t: list[float], end: list[float]) -> Bridge:
    levels = [TIMES.at(torch.tensor(times, dtype=torch.float64)) for times in (t, end)]
    return Bridge(*levels)


def test_coefficients_are_the_derived_ones() -> None:
    """methods.md section 9, (t, T) = (0.05, 0.1), (0.1, 0.1), (0.1, 0.2)."""
    bridge = _bridge([0.05, 0.1, 0.1], [0.1, 0.1, 0.2])
    state = torch.tensor([0.2581757060, 0.9467217988, 0.2111203487], dtype=torch.float64)
    target = torch.tensor([1.5048630471, 2.9396501949, 0.6555463019], dtype=torch.float64)
    torch.testing.assert_close(bridge.into_state, state, rtol=0, atol=5e-11)
    torch.testing.assert_close(bridge.into_target, target, rtol=0, atol=5e-10)
    torch.testing.assert_close(bridge.into_target * bridge.level.sigma, bridge.into_state)


def _images() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = 2 * torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64) - 1
    noise = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    delta = 0.1 * torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x0, noise, delta


def test_at_its_end_the_bridge_is_the_diffused_adversarial_image() -> None:
    x0, noise, delta = _images()
    ends = [0.1, 0.13, 0.17, 0.2]
    bridge = _bridge(ends, ends)
    diffused = bridge.end.noisy(x0 + delta, noise)
    torch.testing.assert_close(bridge.state(x0, noise, delta), diffused, rtol=0, atol=1e-12)


def test_target_gives_back_the_clean_image_at_every_time() -> None:
    x0, noise, delta = _images()
    bridge = _bridge([1e-5, 0.01, 0.08, 0.15], [0.1, 0.12, 0.1, 0.2])
    x, target = bridge.state(x0, noise, delta), bridge.target(noise, delta)
    clean = TIMES.clean(x, target, bridge.level)
    torch.testing.assert_close(clean, x0, rtol=0, atol=1e-12)
    early = (x - bridge.level.noisy(x0, noise)).abs().amax((1, 2, 3))
    assert early[0] < 1e-4 * early[2]  # towards t = 0 the perturbation vanishes


def test_end_is_one_for_the_batch_and_times_are_below_it() -> None:
    loss, random = AdbmLoss(guide()), StepRandom(0, 3, 0, 200, torch.device("cpu"))
    bridge = loss.bridge(random, 200)
    assert bridge.end.labels.unique().numel() == 1
    end = bridge.end.labels[0].item() / 999
    assert 0.1 <= end <= 0.2
    assert bridge.level.labels.max() <= bridge.end.labels[0]
    assert bridge.level.labels.max() > 0.95 * bridge.end.labels[0]
    part = loss.bridge(StepRandom(0, 3, 150, 200, torch.device("cpu")), 50)
    assert torch.equal(part.end.labels, bridge.end.labels[150:])
    assert torch.equal(part.level.labels, bridge.level.labels[150:])
    drawn = {
        round(loss.bridge(StepRandom(0, step, 0, 1, torch.device("cpu")), 1).end.labels.item(), 3)
        for step in range(9)
    }
    assert len(drawn) == 9
    single = AdbmLoss(guide(), end="image").bridge(random, 200)
    assert single.end.labels.unique().numel() > 190


def test_attack_uses_the_ball_the_range_and_the_same_noise_as_the_loss() -> None:
    class Recorder(RoughDenoiser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[Tensor, Tensor]] = []

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            self.seen.append((x.detach(), labels))
            return super().forward(x, labels)

    model, batch, loss = fresh(Recorder), batch_of(16), AdbmLoss(guide())
    loss(model, batch)
    assert len(model.seen) == 4
    x0, bridge = 2 * batch.images - 1, loss.bridge(batch.random, 16)
    noise = batch.random.normal(Purpose.NOISE, (1, 8, 8))
    deltas = []
    for x, labels in model.seen:
        assert torch.equal(labels, bridge.level.labels)
        deltas.append((x - bridge.level.noisy(x0, noise)) / bridge.level.column(bridge.into_state, x0))
    late = bridge.level.labels > 30  # earlier the perturbation in the state is lost to rounding
    for delta in deltas:
        assert delta[late].abs().max() < 16.05 / 255
        assert (x0 + delta)[late].abs().max() < 1.001
    assert deltas[0][late].abs().mean() < deltas[1][late].abs().mean()  # uniform start, then full steps
    assert not torch.allclose(deltas[2][late], deltas[1][late], atol=1e-3)


def test_attack_raises_the_classifiers_loss() -> None:
    model, batch, loss = fresh(RoughDenoiser), batch_of(64), AdbmLoss(guide(), eps=0.2, step_size=0.1)
    x0, bridge = 2 * batch.images - 1, loss.bridge(batch.random, 64)
    noise = batch.random.normal(Purpose.NOISE, (1, 8, 8))
    with inner_network(model, dropout=False) as network:
        found = loss.perturbation(network, x0, batch.labels, bridge, noise, batch.random)
    values = []
    with torch.no_grad():
        for delta in (torch.zeros_like(found), found):
            x = bridge.state(x0, noise, delta)
            clean = TIMES.clean(x, model(x, bridge.level.labels), bridge.level)
            logits = loss.classifier((clean + 1) / 2)
            values.append(torch.nn.functional.cross_entropy(logits, batch.labels).item())
    assert values[1] > values[0] + 0.01


def test_loss_is_the_error_of_the_target_and_modes_come_back() -> None:
    model, batch = fresh(RoughDenoiser), batch_of(8)
    model.train().extra = torch.nn.Dropout(0.5).eval()
    loss = AdbmLoss(guide(), attack_steps=0)
    values = loss(model, batch)
    assert model.training
    assert not model.extra.training
    assert all(weight.requires_grad for weight in model.parameters())
    x0, bridge = 2 * batch.images - 1, loss.bridge(batch.random, 8)
    noise = batch.random.normal(Purpose.NOISE, (1, 8, 8))
    uniform = batch.random.uniform(Purpose.START, 64).view(8, 1, 8, 8).float()
    delta = (x0 + 16 / 255 * (2 * uniform - 1)).clamp(-1, 1) - x0
    output = model(bridge.state(x0, noise, delta), bridge.level.labels)
    expected = (output - bridge.target(noise, delta)).square().mean((1, 2, 3))
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t_end_min": 0.3}, "`t_min, t_end_min, t_end_max` must be"),
        ({"end": "step"}, "`end` must be one of"),
        ({"eps": -1.0}, "`eps` must be"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdbmLoss(guide(), **change)
