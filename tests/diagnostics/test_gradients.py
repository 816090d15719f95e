"""Agreement of gradients between draws, against every gradient taken one by one and against a known answer."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastpure as fp
from fastpure.diagnostics import gradient_agreement
from fastpure.kernels import Domain
from tests.attacks.toys import SHAPE, SIZE, Pixels, images, mixture_defense, scaling_defense


def one_by_one(defense: fp.Defense, x: Tensor, y: Tensor, ids: Tensor, draws: int) -> Tensor:
    """Gradients [B, draws, D] of the cross-entropy by plain autograd, one draw after the other."""
    found = []
    for draw in range(draws):
        point = x.clone().requires_grad_(True)
        loss = F.cross_entropy(defense(point, ids, draw, domain=Domain.ATTACK), y, reduction="sum")
        found.append(torch.autograd.grad(loss, point)[0].flatten(1).double())
    return torch.stack(found, 1)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_it_is_that_of_the_single_gradients(batch_size):
    defense, x, ids, n = mixture_defense(Pixels()), images(4), torch.tensor([5, 2, 77, 9]), 7
    y = torch.tensor([0, 1, 2, 3])
    found = gradient_agreement(defense, x, y, ids, draws=n, batch_size=batch_size)
    each = one_by_one(defense, x, y, ids, n)
    unit = each / each.norm(dim=2, keepdim=True)
    products = unit @ unit.mT
    cosine = (products.sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)) / (n * (n - 1))
    assert torch.allclose(found.cosine, cosine, atol=1e-5)
    gram = each @ each.mT
    signal = (gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)) / (n * (n - 1))
    assert torch.allclose(found.snr, signal / each.var(1).sum(1), rtol=1e-3)
    assert (found.draws, found.loss, found.gradient) == (n, "ce", "exact")
    needed = 0.49 / 0.51 / float(found.snr.median())
    assert f"needs {math.ceil(needed) if needed > 0 else 'inf'} draws" in str(found)


class Half(nn.Module):
    """Two classes; the gradient of the margin is the purified image itself in [-1, 1] coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def forward(self, u: Tensor) -> Tensor:
        score = (2 * u - 1).square().flatten(1).sum(1) / 2
        return torch.stack([-score, 0 * score], 1)


def test_signal_to_noise_of_a_known_gradient():
    """x' = s x + d z, so the gradient is s (s x + d z) times a constant: snr = s^2 |x|^2 / (d^2 SIZE)."""
    factor, x = 0.8, images(3)
    defense = scaling_defense(Half(), factor)
    (row,) = defense.purifier.method.table().rows
    slope = row.a + row.b * factor
    found = gradient_agreement(
        defense, x, torch.zeros(3, dtype=torch.int64), draws=600, loss="margin", batch_size=300
    )
    expected = slope**2 * (2 * x - 1).double().flatten(1).square().sum(1) / (row.d**2 * SIZE)
    assert torch.allclose(found.snr, expected, rtol=0.06)
    # The cosine of one gradient with another is about snr / (1 + snr).
    assert torch.allclose(found.cosine, expected / (1 + expected), atol=0.03)


def test_draws_for_a_cosine_are_those_that_reach_it():
    defense, x, y = scaling_defense(Half(), 0.8, t=0.9), images(1), torch.zeros(1, dtype=torch.int64)
    found = gradient_agreement(defense, x, y, draws=800, loss="margin", batch_size=400)
    (n,) = found.draws_for(0.8).tolist()
    assert n > 2
    many = 200 * int(n)
    points = x.repeat(many, 1, 1, 1).requires_grad_(True)
    draws = torch.arange(1000, 1000 + many)
    logits = defense(points, torch.zeros_like(draws), draws, domain=Domain.ATTACK)
    (each,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), points)
    means = each.view(200, int(n), -1).mean(1)
    true = (2 * x - 1).flatten()
    reached = F.cosine_similarity(means, true[None]).mean()
    assert float(reached) == pytest.approx(0.8, abs=0.06)


def test_where_nothing_is_random_all_draws_agree():
    x, y = images(3), torch.tensor([0, 1, 2])
    for target in (Pixels(), nn.Sequential(Pixels()).eval()):
        found = gradient_agreement(target, x, y)
        assert found.cosine.tolist() == [1.0] * 3
        assert found.snr.tolist() == [math.inf] * 3
        assert found.draws == 1
        assert found.draws_for().tolist() == [1.0] * 3
        assert "nothing is random" in str(found)
    defense = mixture_defense(Pixels())
    with defense.fixed(draw=3):
        assert gradient_agreement(defense, x, y).cosine.tolist() == [1.0] * 3
    assert gradient_agreement(defense, x, y, gradient="blind").draws == 1
    assert gradient_agreement(defense, x, y, gradient="bpda").draws == 16


def test_one_network_call_holds_no_more_than_a_batch(monkeypatch):
    defense, sizes = mixture_defense(Pixels()), []
    forward = fp.Purifier.forward

    def counted(self, x, *args, **rest):
        sizes.append(len(x))
        return forward(self, x, *args, **rest)

    monkeypatch.setattr(fp.Purifier, "forward", counted)
    gradient_agreement(defense, images(5), torch.zeros(5, dtype=torch.int64), draws=6, batch_size=4)
    assert max(sizes) <= 4
    assert sum(sizes) == 5 * 6


class Noisy(nn.Module):
    """Noise of its own: every answer is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.training = Pixels(), False

    def forward(self, u: Tensor) -> Tensor:
        return self.inner(u + 0.3 * torch.randn_like(u))


def test_noise_that_nobody_numbers_counts_too():
    torch.manual_seed(0)
    found = gradient_agreement(Noisy(), images(2), torch.tensor([0, 1]), draws=8)
    assert found.draws == 8
    assert bool((found.cosine < 0.999).all())
    assert bool((found.cosine > 0).all())


class Flat(nn.Module):
    """No gradient where the first pixel is dark, a plain one elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def forward(self, u: Tensor) -> Tensor:
        score = (u[:, 0, 0, 0] > 0.5).to(u) * u.flatten(1).sum(1)
        return torch.stack([-score, score], 1)


def test_zero_gradients_have_no_direction():
    x = images(2)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 0.1, 0.9
    found = gradient_agreement(Flat(), x, torch.tensor([0, 0]))
    for values in (found.cosine, found.snr, found.draws_for()):
        assert math.isnan(float(values[0]))
    assert float(found.cosine[1]) == 1.0


def test_refusals():
    defense, x, y = mixture_defense(Pixels()), images(2), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"`defense` must be a Defense or an nn\.Module, got str"):
        gradient_agreement("coup", x, y)
    with pytest.raises(ValueError, match="`x` must be at least one image"):
        gradient_agreement(defense, x[:0], y[:0])
    with pytest.raises(TypeError, match="`x` must be of dtype float32, got float64"):
        gradient_agreement(defense, x.double(), y)
    with pytest.raises(ValueError, match=r"`x` must be in \[0, 1\]"):
        gradient_agreement(defense, x * 255, y)
    with pytest.raises(TypeError, match=r"`y` must be an integer tensor \[B\]"):
        gradient_agreement(defense, x, [0, 1])
    with pytest.raises(ValueError, match=r"`y` must be of shape \[2\], one label per image"):
        gradient_agreement(defense, x, y[:1])
    with pytest.raises(ValueError, match="`y` must be labels from 0 on, got -1"):
        gradient_agreement(defense, x, torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="a classifier of at least 10 classes"):
        gradient_agreement(defense, x, torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="`draws` must be an integer in"):
        gradient_agreement(defense, x, y, draws=1)
    with pytest.raises(TypeError, match="`draws` must be an integer in"):
        gradient_agreement(defense, x, y, draws=2.5)
    with pytest.raises(ValueError, match="`batch_size`"):
        gradient_agreement(defense, x, y, batch_size=0)
    with pytest.raises(ValueError, match="`loss` must be one of 'ce', 'margin', 'dlr'"):
        gradient_agreement(defense, x, y, loss="mse")
    with pytest.raises(ValueError, match="`gradient` must be one of"):
        gradient_agreement(defense, x, y, gradient="none")
    with pytest.raises(TypeError, match=r"`defense` must be a fastpure\.Defense for gradient='bpda'"):
        gradient_agreement(Pixels(), x, y, gradient="bpda")
    with pytest.raises(ValueError, match="`defense` must be differentiable"):
        gradient_agreement(Cut(), x, y)
    found = gradient_agreement(Pixels(), x, y)
    for value in (0, 1, "0.5", True):
        with pytest.raises(ValueError, match="`cosine` must be between 0 and 1"):
            found.draws_for(value)


class Cut(nn.Module):
    """Logits that are cut off from the images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.training = Pixels(), False

    def forward(self, u: Tensor) -> Tensor:
        return self.inner(u.detach())


def test_shape_of_toys_is_what_these_tests_count_with():
    assert math.prod(SHAPE) == SIZE
