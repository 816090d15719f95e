"""How much is left of a perturbation, against a purifier whose every step is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.diagnostics import compression
from fastpure.nets import Denoiser
from fastpure.schedule import StepTable
from tests.attacks.toys import SHAPE, SIZE, Pixels, Scaled, images, mixture_defense

FACTOR = 0.8


def scaling(t: float = 0.1) -> fp.Purifier:
    """One step x' = (a + b FACTOR) x + d z."""
    denoiser = Denoiser.from_module(Scaled(FACTOR), image_shape=SHAPE)
    return fp.Purifier(denoiser, fp.methods.coup_unguided(t=t, dt=t, clip_output=False), seed=2)


def row(table: StepTable):
    (only,) = table.rows
    return only


def perturbed(x: torch.Tensor, size: float = 0.05) -> torch.Tensor:
    return (x + size * (images(len(x), 7) - 0.5)).clamp(0, 1)


def test_a_linear_purifier_shrinks_by_its_slope():
    own, x = scaling(), images(5)
    one = row(own.method.table())
    found = compression(own, x, perturbed(x), draws=3)
    assert found.ratio.shape == (5, 3)
    assert found.ratio.dtype == torch.float64
    expected = torch.full((5, 3), one.a + one.b * FACTOR, dtype=torch.float64)
    assert torch.allclose(found.ratio, expected, rtol=1e-4)
    assert torch.allclose(found.distance, (perturbed(x).double() - x).flatten(1).norm(dim=1))
    assert torch.equal(found.mean, found.ratio.mean(1))
    assert "fixed noise" in str(found)


def test_fresh_noise_adds_its_own_difference():
    """|slope delta + d (z' - z) / 2| / |delta|: squared, its mean is slope^2 + d^2 SIZE / (2 |delta|^2)."""
    own, x = scaling(), images(4)
    one = row(own.method.table())
    found = compression(own, x, perturbed(x), draws=200, noise="fresh")
    slope = one.a + one.b * FACTOR
    expected = slope**2 + one.d**2 * SIZE / (2 * found.distance**2)
    assert torch.allclose(found.ratio.square().mean(1), expected, rtol=0.1)
    fixed = compression(own, x, perturbed(x), draws=2)
    assert bool((found.mean > 5 * fixed.mean).all())


def test_the_noise_is_that_of_the_deployed_defence():
    own, x = mixture_defense(Pixels()).purifier, images(3)
    other, ids = perturbed(x), torch.tensor([8, 1, 30])
    found = compression(own, x, other, ids, draws=2, noise="fresh", batch_size=2)
    for j in range(2):
        difference = own(other, ids, 2 * j + 1) - own(x, ids, 2 * j)
        expected = difference.double().flatten(1).norm(dim=1) / found.distance
        assert torch.allclose(found.ratio[:, j], expected, rtol=1e-5)
    whole = compression(own, x, other, ids, draws=2, noise="fresh")
    assert torch.allclose(whole.ratio, found.ratio, rtol=1e-5)
    assert not torch.allclose(
        compression(own, x, other, draws=2, noise="fresh").ratio, found.ratio, rtol=1e-3
    )


def test_an_image_that_did_not_move_has_no_ratio():
    own, x = scaling(), images(2)
    other = perturbed(x)
    other[0] = x[0]
    found = compression(own, x, other)
    assert math.isnan(float(found.ratio[0]))
    assert float(found.ratio[1]) > 0
    assert "mean over 1 images" in str(found)
    assert "not known" in str(compression(own, x, x))


def test_refusals():
    own, x = scaling(), images(2)
    with pytest.raises(TypeError, match=r"`purifier` must be a fastpure.Purifier, got Defense. Pass defense"):
        compression(fp.Defense(own, Pixels()), x, x)
    with pytest.raises(TypeError, match=r"`purifier` must be a fastpure\.Purifier, got Identity"):
        compression(nn.Identity(), x, x)
    with pytest.raises(
        ValueError, match=r"`x_adv` must be of shape \[2, 1, 5, 5\] like x, got \[1, 1, 5, 5\]"
    ):
        compression(own, x, x[:1])
    with pytest.raises(ValueError, match="`x` must be at least one image"):
        compression(own, x[:0], x[:0])
    with pytest.raises(ValueError, match=r"`x_adv` must be in \[0, 1\]"):
        compression(own, x, x + 1)
    with pytest.raises(TypeError, match="`x_adv` must be of dtype float32, got uint8"):
        compression(own, x, (255 * x).byte())
    with pytest.raises(ValueError, match=r"`x` must be of shape \[B, 1, 5, 5\]"):
        compression(own, x[:, :, :3], x[:, :, :3])
    with pytest.raises(ValueError, match="`noise` must be one of 'fixed', 'fresh'"):
        compression(own, x, x, noise="none")
    for draws in (0, -1):
        with pytest.raises(ValueError, match="`draws` must be an integer in"):
            compression(own, x, x, draws=draws)
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
        compression(own, x, x, batch_size=0)
    with pytest.raises(ValueError, match="`sample_ids` must be one id per image, 2"):
        compression(own, x, x, [1])
    with pytest.raises(TypeError, match="`sample_ids` must be whole numbers"):
        compression(own, x, x, [0.5, 1.0])
