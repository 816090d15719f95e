"""TRADES: the loss against its formula, the ball, the batch-norm mode; and the levels of the other losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastpure.guidance.auxiliary import DISTANCES, divergence
from fastpure.train import DiscreteDenoiserLoss, EdmDenoiserLoss, TradesLoss
from fastpure.train.batches import Purpose, StepRandom
from fastpure.train.losses import DiscreteTimes, EdmLevels
from tests.train.helpers import SmallClassifier, batch_of, fresh


def _model() -> nn.Module:
    model = fresh(SmallClassifier).train()
    model.layers[3].p = 0.0  # no dropout, so that two calls agree
    return model


def test_loss_is_cross_entropy_plus_beta_times_the_divergence() -> None:
    model, batch, loss = _model(), batch_of(32), TradesLoss(beta=6.0, eps=0.1, step_size=0.03)
    noise = batch.random.normal(Purpose.START, (1, 8, 8))
    moved = loss.perturb(model, batch.images, noise)
    values = loss(model, batch)
    logits, others = model(batch.images), model(moved)
    p = logits.softmax(1)
    expected = F.cross_entropy(logits, batch.labels, reduction="none") + 6 * (
        p * (p.log() - others.softmax(1).log())
    ).sum(1)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_perturbation_stays_in_the_ball_and_raises_the_divergence() -> None:
    model, batch, loss = _model().eval(), batch_of(32), TradesLoss(eps=0.1, step_size=0.03)
    noise = batch.random.normal(Purpose.START, (1, 8, 8))
    moved = loss.perturb(model, batch.images, noise)
    assert (moved - batch.images).abs().max() <= 0.1 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    random = (batch.images + 0.1 * noise.sign()).clamp(0, 1)
    found, chance = (divergence(model(batch.images), model(x)).mean() for x in (moved, random))
    assert found > 3 * chance


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_agdm_s_auxiliary_network_is_trained_with_the_distance_that_guides(norm: str) -> None:
    """CE + beta mean_j (c_j(u) - c_j(u'))^2, u' found by the same distance in the same norm."""
    model, batch = _model(), batch_of(32)
    loss = TradesLoss(beta=0.5, eps=0.1, step_size=0.03, distance="mse", norm=norm)
    moved = loss.perturb(model, batch.images, batch.random.normal(Purpose.START, (1, 8, 8)))
    values, logits, others = loss(model, batch), model(batch.images), model(moved)
    expected = F.cross_entropy(logits, batch.labels, reduction="none") + 0.5 * (
        logits - others
    ).square().mean(1)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_an_l2_perturbation_stays_in_its_ball_and_raises_the_distance(distance: str) -> None:
    model, batch = _model().eval(), batch_of(32)
    loss = TradesLoss(eps=0.5, step_size=0.125, distance=distance, norm="L2")
    noise = batch.random.normal(Purpose.START, (1, 8, 8))
    moved = loss.perturb(model, batch.images, noise)
    lengths = (moved - batch.images).flatten(1).double().norm(dim=1)
    assert lengths.max() <= 0.5
    assert lengths.median() > 0.45, "the ball is used"
    assert moved.min() >= 0
    assert moved.max() <= 1
    random = (batch.images + 0.5 * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    apart = DISTANCES[distance]
    found, chance = (apart(model(batch.images), model(x)).mean() for x in (moved, random))
    assert found > 3 * chance


def test_what_came_later_stays_out_of_what_a_continued_run_must_match() -> None:
    """Runs of TRADES begun before there was a choice go on; another distance or norm is another run."""
    assert not {"distance", "norm"} & TradesLoss().to_dict().keys()
    other = TradesLoss(distance="mse", norm="L2").to_dict()
    assert (other["distance"], other["norm"]) == ("mse", "L2")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_inner_mode_decides_the_statistics_and_leaves_the_running_ones(mode: str) -> None:
    model, batch, loss = _model(), batch_of(16), TradesLoss(inner_mode=mode, n_iter=2)
    norm = model.layers[1]
    seen: list[bool] = []
    norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss.perturb(model, batch.images, torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert set(seen) == {mode == "train"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    loss(model, batch)
    assert int(norm.num_batches_tracked) == 2  # the clean and the perturbed images of the outer loss


def test_discrete_loss_uses_the_index_as_label() -> None:
    class Recorder(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            self.x, self.labels = x, labels
            return torch.zeros_like(x)

    recorder, batch = Recorder(), batch_of(100)
    values = DiscreteDenoiserLoss(DiscreteTimes(t_max=0.3))(recorder, batch)
    assert recorder.labels.dtype == torch.int64
    assert recorder.labels.min() >= 0
    assert 270 < recorder.labels.max() <= 299
    bars = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)
    a = bars[recorder.labels].view(-1, 1, 1, 1)
    noise = (recorder.x - a.sqrt() * (2 * batch.images - 1)) / (1 - a).sqrt()
    torch.testing.assert_close(noise.square().mean((1, 2, 3)), values.double(), rtol=1e-3, atol=0)
    drawn = batch.random.normal(Purpose.NOISE, (1, 8, 8)).double()
    torch.testing.assert_close(noise, drawn, rtol=0, atol=2e-4)


def test_edm_levels_are_log_normal_and_can_be_cut_off() -> None:
    random = StepRandom(0, 0, 0, 20000, torch.device("cpu"))
    logs = EdmLevels().draw(random).sigma.log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert logs.std().item() == pytest.approx(1.2, abs=0.03)
    cut = EdmLevels(sigma_max=0.5).draw(random).sigma
    assert 0.49 < cut.max() <= 0.5
    kept = logs.exp() <= 0.5
    assert cut.log().mean().item() == pytest.approx(logs[kept].mean().item(), abs=0.03)


def test_edm_loss_is_the_weighted_error_of_the_clean_image() -> None:
    class Recorder(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            self.x, self.sigma = x, sigma
            return x

    recorder, batch = Recorder(), batch_of(32)
    values = EdmDenoiserLoss()(recorder, batch)
    sigma = recorder.sigma.double()
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    noise = (recorder.x - (2 * batch.images - 1)).square().mean((1, 2, 3)).double()
    torch.testing.assert_close(values.double(), weight * noise, rtol=1e-4, atol=0)
    assert math.isfinite(values.sum())
    # the same network as a noise prediction has the same loss and the same clean image
    level = EdmLevels().draw(batch.random)
    x0, drawn = 2 * batch.images - 1, batch.random.normal(Purpose.NOISE, (1, 8, 8))
    x = level.noisy(x0, drawn)
    guess = 0.5 * x
    as_noise = (x - guess) / level.column(level.sigma, x)
    kinds = EdmLevels(), EdmLevels(prediction="eps")
    losses = [kind.loss(out, x0, drawn, level) for kind, out in zip(kinds, (guess, as_noise), strict=True)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kinds[1].clean(x, as_noise, level), guess, rtol=1e-4, atol=1e-5)


def test_mistakes_are_named() -> None:
    changes = (
        {"beta": 0.0},
        {"n_iter": 0},
        {"inner_mode": "both"},
        {"distance": "l1"},
        {"norm": "L1"},
        {"eps": 8.0},
    )
    for change in changes:
        with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be"):
            TradesLoss(**change)
