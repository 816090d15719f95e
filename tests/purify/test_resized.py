"""Resizing inside the defence: the published interpolation, differentiable end to end, same noise keys."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastpure as fp
from fastpure.classifiers import Resized, resize
from fastpure.purify import ResizedPurifier


@pytest.mark.parametrize(
    ("before", "after"), [(224, 256), (256, 224), (8, 13), (13, 8), (5, 5), (7, 1), (1, 4)]
)
def test_resize_is_the_published_interpolation(before: int, after: int) -> None:
    x = torch.rand(2, 3, before, before, dtype=torch.float64, requires_grad=True)
    ours = resize(x, after)
    theirs = F.interpolate(x, size=(after, after), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    v = torch.rand_like(ours)
    gradients = [torch.autograd.grad(out, x, v)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    assert resize(x.float(), after).dtype == torch.float32


def test_resize_refuses_rectangles() -> None:
    with pytest.raises(ValueError, match=r"`x` must be square images"):
        resize(torch.rand(1, 3, 4, 5), 8)


def make(size: int) -> ResizedPurifier:
    return ResizedPurifier(fp.load_denoiser("digits"), fp.methods.coup_unguided(0.1, 0.05), size, seed=3)


def test_resized_purifier_is_resize_purify_resize() -> None:
    x, ids = torch.rand(3, 1, 7, 7), [5, 1, 9]
    plain = fp.Purifier(fp.load_denoiser("digits"), fp.methods.coup_unguided(0.1, 0.05), seed=3)
    purifier = make(7)
    assert purifier.image_shape == (1, 7, 7)
    expected = resize(plain(resize(x, 8), ids, 2), 7)
    assert torch.equal(purifier(x, ids, 2), expected)
    path = purifier.trajectory(x, ids, 2)
    assert path.shape == (3, 3, 1, 7, 7)
    torch.testing.assert_close(
        path, torch.stack([resize(s, 7) for s in plain.trajectory(resize(x, 8), ids, 2)])
    )
    assert purifier(x[:0]).shape == (0, 1, 7, 7)


def test_its_gradient_is_that_of_the_whole_map() -> None:
    purifier = ResizedPurifier(
        fp.load_denoiser("digits"), fp.methods.coup_unguided(0.1, 0.05), 7, seed=3, precision="fp64"
    )
    x = 0.25 + 0.5 * torch.rand(1, 1, 7, 7, dtype=torch.float64)
    direction, step = torch.randn_like(x), 1e-5
    x.requires_grad_()
    v = torch.randn(1, 1, 7, 7, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(purifier(x), x, v)
    with torch.no_grad():
        difference = (purifier(x + step * direction) - purifier(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), (difference * v).sum(), rtol=1e-6, atol=1e-8)


def test_defence_and_guidance_at_two_sizes() -> None:
    """A classifier of 7x7 images behind, and inside, an 8x8 diffusion model."""
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(49, 10)).eval()
    guide = Resized(classifier, 7)
    assert not guide.training
    method = fp.methods.coup(guide, t=0.1, dt=0.05)
    defense = fp.Defense(ResizedPurifier(fp.load_denoiser("digits"), method, 7), classifier)
    x = torch.rand(2, 1, 7, 7, requires_grad=True)
    defense(x, draw=0).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    again = defense.purifier.with_method(fp.methods.coup_unguided(0.1, 0.05))
    assert isinstance(again, ResizedPurifier)
    assert again.size == 7
    assert "size=7" in repr(again)


def test_wrong_images_are_named() -> None:
    purifier = make(7)
    with pytest.raises(ValueError, match=r"`x` must be of shape \[B, 1, 7, 7\], got \[2, 1, 8, 8\]"):
        purifier(torch.rand(2, 1, 8, 8))
    with pytest.raises(TypeError, match="`x` must be a float32 tensor"):
        purifier([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`x` must be of dtype float32, got uint8"):
        purifier(torch.zeros(2, 1, 7, 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"`x` must be in \[0, 1\]"):
        purifier(2 * torch.ones(2, 1, 7, 7))
    with pytest.raises(ValueError, match="`size` must be an integer >= 1"):
        make(0)
