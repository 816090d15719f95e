"""ADDT: the recorded mapping, mixing and sign steps; the strength schedule; what the iteration does."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastpure as fp
from fastpure.reverse.memory import count_saved_bytes
from fastpure.train.batches import Purpose
from fastpure.train.losses import (
    AddtLinfLoss,
    AddtLoss,
    ContinuousTimes,
    DiscreteTimes,
    EdmLevels,
    mix,
    rbgm,
)
from fastpure.train.losses.addt import sign_step
from fastpure.train.losses.base import inner_network
from tests.golden import arrays
from tests.train.helpers import RoughDenoiser, batch_of, fresh, guide

GOLDEN = arrays("rbgm")


def _golden(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(GOLDEN[name]).to(dtype)


@pytest.mark.parametrize("case", ["case0", "case1", "case2", "case3", "tie"])
def test_mapping_equals_the_recorded_one(case: str) -> None:
    ours = rbgm(_golden(f"{case}_input", torch.float32), _golden(f"{case}_gauss", torch.float32))
    np.testing.assert_array_equal(ours.numpy(), GOLDEN[f"{case}_output"])


def test_mapping_keeps_ranks_and_the_exact_gaussian_values() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(5, 3, 8, 8, generator=generator)
    gauss = torch.randn(5, 3, 8, 8, generator=generator)
    mapped = rbgm(gradient, gauss)
    rows = [tensor.flatten(2) for tensor in (gradient, gauss, mapped)]
    assert torch.equal(rows[2].sort(-1).values, rows[1].sort(-1).values)
    assert torch.equal(rows[2].argsort(-1), rows[0].argsort(-1))  # Spearman's correlation is 1
    scale = torch.tensor([1e-9, 1.0, 1e6])[None, :, None, None]
    assert torch.equal(rbgm(scale.double() * gradient.double() + 7.0, gauss), mapped)
    assert not torch.equal(rbgm(-gradient, gauss), mapped)


def test_mapping_per_image_ranks_all_channels_together() -> None:
    gradient = torch.arange(24.0).view(1, 2, 3, 4).flip(1)  # the first channel holds the larger values
    gauss = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    mapped = rbgm(gradient, gauss, per="image")
    assert mapped[:, 0].min() > mapped[:, 1].max()
    assert torch.equal(mapped.flatten().sort().values, gauss.flatten().sort().values)
    with pytest.raises(ValueError, match="`gauss` must be of shape"):
        rbgm(gradient, gauss[:, :1])


def test_strength_follows_its_schedule() -> None:
    """methods.md section 9."""
    index = torch.tensor([0, 26, 27, 50, 99, 199, 999])
    level = DiscreteTimes().at(index)
    expected = torch.tensor([0.3, 0.3, 0.29438, 0.17045, 0.0885404, 0.0417083, 1.906e-4], dtype=torch.float64)
    torch.testing.assert_close(level.signal_to_noise(0.03, 0.3), expected, rtol=2e-4, atol=0)
    assert level.signal_to_noise(0.03, 1.0)[1].item() == pytest.approx(0.30396, abs=5e-6)
    ratio = level.signal_to_noise(1.0, 10.0)
    assert ratio[4].item() == pytest.approx(2.95135, abs=5e-6)
    assert ratio[0].item() == 10.0


@pytest.mark.parametrize("family", ["ddpm", "vp"])
def test_mixing_and_noisy_image_equal_the_recorded_ones(family: str) -> None:
    times = _golden(f"{family}_t", torch.int64 if family == "ddpm" else torch.float64)
    level = DiscreteTimes().at(times) if family == "ddpm" else ContinuousTimes().at(times)
    names = ("sqrt_abar", "sqrt_1m_abar") if family == "ddpm" else ("mean_coef", "std")
    for ours, name in zip((level.alpha, level.sigma), names, strict=True):
        torch.testing.assert_close(ours, _golden(f"{family}_{name}"), rtol=1e-9, atol=0)
    strength = level.signal_to_noise(0.03, 0.3)
    torch.testing.assert_close(strength, _golden(f"{family}_ratio"), rtol=1e-9, atol=0)
    mixed = mix(_golden("mix_noise"), _golden("mix_delta"), strength)
    torch.testing.assert_close(mixed, _golden(f"{family}_mixed_noise"), rtol=1e-9, atol=1e-12)
    noisy = level.noisy(_golden("mix_x0"), mixed)
    torch.testing.assert_close(noisy, _golden(f"{family}_x_t"), rtol=1e-9, atol=1e-12)
    if family == "vp":
        torch.testing.assert_close(level.labels.double(), _golden("vp_label"), rtol=1e-6, atol=0)


def test_edm_mixing_equals_the_recorded_one() -> None:
    level = EdmLevels().at(_golden("edm_sigma"))
    strength = level.signal_to_noise(0.03, 0.3)
    torch.testing.assert_close(strength, _golden("edm_ratio"), rtol=1e-12, atol=0)
    noisy = level.noisy(_golden("mix_x0"), mix(_golden("mix_noise"), _golden("mix_delta"), strength))
    torch.testing.assert_close(noisy, _golden("edm_x_sigma"), rtol=1e-9, atol=1e-12)


def test_sign_step_and_linf_mixing_equal_the_recorded_ones() -> None:
    x0, before, gradient = (_golden(name) for name in ("mix_x0", "linf_delta_before", "linf_grad"))
    step, eps = GOLDEN["linf_alpha"].item(), GOLDEN["linf_epsilon"].item()
    after = sign_step(x0, before, gradient, step, eps)
    torch.testing.assert_close(after, _golden("linf_delta_after"), rtol=0, atol=1e-12)
    # the recorded run mixes on the discrete schedule's levels of `ddpm_t`
    level = DiscreteTimes().at(_golden("ddpm_t", torch.int64))
    ratio = level.signal_to_noise(1.0, 10.0)
    torch.testing.assert_close(ratio, _golden("linf_ratio"), rtol=1e-9, atol=0)
    mixed = _golden("mix_noise") + level.column(ratio, x0) * after
    torch.testing.assert_close(mixed, _golden("linf_mixed_noise"), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(level.noisy(x0, mixed), _golden("linf_x_t"), rtol=1e-9, atol=1e-12)


def _by_hand(loss: AddtLoss, model: nn.Module, batch) -> Tensor:
    """One iteration as written in methods.md 4.1, with plain autograd and nothing of the library's losses."""
    random, x0 = batch.random, 2 * batch.images - 1
    t = loss.levels.t_min + (loss.levels.t_max - loss.levels.t_min) * random.uniform(Purpose.TIME)[:, 0]
    signal = torch.exp(-0.1 * t - 9.95 * t**2).view(-1, 1, 1, 1).float()
    a, s = signal.sqrt(), (1 - signal).sqrt()
    lam = (0.03 * a / s).clamp(0, 0.3)
    shape, labels = (1, 8, 8), (999 * t).float()
    delta, total = random.normal(Purpose.MAPPING, shape), torch.zeros_like(x0)
    for k in range(loss.inner_steps):
        point = delta.clone().requires_grad_(True)
        noise = random.normal(Purpose.INNER_NOISE, shape, k)
        x = a * x0 + s * ((1 - lam**2).sqrt() * noise + lam * point)
        clean = (x - s * model(x, labels)) / a
        value = F.cross_entropy(loss.classifier(clean / 2 + 0.5), batch.labels)
        total = total + torch.autograd.grad(value, point)[0]
        gauss = random.normal(Purpose.MAPPING, shape, k + 1).flatten(1).sort(1).values
        ranks = total.flatten(1).argsort(1).argsort(1)
        delta = gauss.gather(1, ranks).view_as(x0)
    target = (1 - lam**2).sqrt() * random.normal(Purpose.NOISE, shape) + lam * delta
    return (model(a * x0 + s * target, labels) - target).square().mean((1, 2, 3))


def test_iteration_equals_the_one_written_by_hand() -> None:
    loss = AddtLoss(guide(), ContinuousTimes(1e-3, 0.3))
    model, batch = fresh(RoughDenoiser), batch_of(12)
    expected = _by_hand(loss, model, batch)
    torch.testing.assert_close(loss(model, batch), expected, rtol=1e-4, atol=1e-6)
    changed = AddtLoss(guide(), ContinuousTimes(1e-3, 0.3), running_sum=False)
    assert (changed(model, batch) - expected).abs().max() > 1e-4  # the switch does something


def test_perturbation_raises_the_classifiers_loss() -> None:
    loss = AddtLoss(guide(), ContinuousTimes(0.05, 0.1), unit=0.3, cap=0.9)
    model, batch = fresh(RoughDenoiser), batch_of(64)
    x0, level = 2 * batch.images - 1, loss.levels.draw(batch.random)
    strength = level.signal_to_noise(loss.unit, loss.cap)
    with inner_network(model, dropout=False) as network:
        found = loss.perturbation(network, x0, batch.labels, level, batch.random)
    noise = batch.random.normal(Purpose.NOISE, (1, 8, 8))
    values = []
    with torch.no_grad():
        for delta in (torch.zeros_like(found), found):
            x = level.noisy(x0, mix(noise, delta, strength))
            clean = loss.levels.clean(x, model(x, level.labels), level)
            values.append(F.cross_entropy(loss.classifier((clean + 1) / 2), batch.labels).item())
    assert values[1] > values[0] + 0.05


@pytest.mark.parametrize("kind", [AddtLoss, AddtLinfLoss])
def test_inner_steps_leave_no_gradient_and_no_frozen_weight(kind: type) -> None:
    model, batch, classifier = fresh(RoughDenoiser), batch_of(4), guide()
    values = kind(classifier)(model, batch)
    assert all(weight.grad is None for weight in [*model.parameters(), *classifier.parameters()])
    assert all(weight.requires_grad for weight in model.parameters())
    values.mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert all(weight.grad is None for weight in classifier.parameters())


@pytest.mark.parametrize("half", [False, True])
def test_inner_pass_keeps_less_than_half_and_gives_the_same_gradient(half: bool) -> None:
    """The functions for frozen weights are in use, in half precision too."""
    denoiser = fp.Denoiser.from_config("ddpmpp-digits", seed=1).train()
    plain = copy.deepcopy(denoiser).eval()
    weights = list(denoiser.state_dict(keep_vars=True).values())
    x, labels = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((8,), 99.9)
    kept, gradients = [], []
    for inner in (True, False):
        leaf = x.clone().requires_grad_(True)
        with ExitStack() as stack:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=half))
            network = stack.enter_context(inner_network(denoiser, dropout=False)) if inner else plain
            saved = stack.enter_context(count_saved_bytes(*weights))
            output = network(leaf, labels)
        gradients.append(torch.autograd.grad(output.float().square().sum(), leaf)[0])
        kept.append(saved.total)
    assert kept[0] < 0.5 * kept[1]
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < (0.05 if half else 1e-5)
    assert denoiser.training
    assert all(weight.requires_grad for weight in denoiser.parameters())


def test_linf_perturbation_makes_the_noisy_image_that_of_the_attacked_one() -> None:
    """Where the ratio is not clipped, the state is alpha (x0 + delta) + sigma noise and |delta| <= 16/255."""

    class Recorder(RoughDenoiser):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            self.seen = x.detach()
            return super().forward(x, labels)

    model, batch = fresh(Recorder), batch_of(16)
    loss = AddtLinfLoss(guide(), ContinuousTimes(0.1, 0.3))
    loss(model, batch)
    x0, level = 2 * batch.images - 1, loss.levels.draw(batch.random)
    clean_state = level.noisy(x0, batch.random.normal(Purpose.NOISE, (1, 8, 8)))
    delta = (model.seen - clean_state) / level.column(level.alpha, x0)
    assert 15 / 255 < delta.abs().max() < 16.01 / 255
    assert (x0 + delta).abs().max() < 1 + 1e-5


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="`classifier` must be in evaluation mode"):
        AddtLoss(guide().train())
    with pytest.raises(ValueError, match="`cap` must be a strength"):
        AddtLoss(guide(), cap=1.5)
    with pytest.raises(ValueError, match="`objective` must be one of"):
        AddtLoss(guide(), objective="margin")
    with pytest.raises(ValueError, match="`t_max` must be at least one"):
        DiscreteTimes(t_max=0.0001)
