"""Distances and similarities against independent computations, and LPIPS that is there or says how to get it."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import fastpure as fp
from fastpure.attacks.low_frequency import lpips_vgg
from fastpure.diagnostics import image_quality
from fastpure.errors import MissingExtra


def pair(n: int = 3, shape: tuple[int, ...] = (3, 20, 17)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=generator)
    return x, x + 0.1 * torch.randn(x.shape, generator=generator)


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Wang et al. 2004 with scipy's Gaussian filter cut off after five pixels, zeros beyond the edge."""

    def blurred(image):
        return gaussian_filter(image, 1.5, mode="constant", truncate=5 / 1.5)

    values = []
    for a, b in zip(one, other, strict=True):
        mean_a, mean_b = blurred(a), blurred(b)
        var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
        covariance = blurred(a * b) - mean_a * mean_b
        top = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
        values.append(top / (mean_a**2 + mean_b**2 + 0.01**2) / (var_a + var_b + 0.03**2))
    return float(np.mean(values))


def test_every_number_against_its_definition():
    x, other = pair()
    found = image_quality(x, other)
    one, two = x.double().numpy(), other.double().numpy()
    for i in range(3):
        difference = two[i] - one[i]
        assert float(found.l2[i]) == pytest.approx(np.sqrt((difference**2).sum()), rel=1e-12)
        assert float(found.linf[i]) == pytest.approx(np.abs(difference).max(), rel=1e-12)
        assert float(found.psnr[i]) == pytest.approx(10 * np.log10(1 / (difference**2).mean()), rel=1e-12)
        assert float(found.ssim[i]) == pytest.approx(ssim(one[i], two[i]), abs=1e-9)
    assert all(getattr(found, name).dtype == torch.float64 for name in ("l2", "linf", "psnr", "ssim"))


def test_equal_images():
    x, _ = pair()
    found = image_quality(x, x.clone())
    assert found.l2.tolist() == found.linf.tolist() == [0.0] * 3
    assert found.psnr.tolist() == [math.inf] * 3
    assert torch.allclose(found.ssim, torch.ones(3, dtype=torch.float64), atol=1e-9)


def test_a_constant_difference_has_known_decibels():
    x = torch.full((1, 1, 4, 4), 0.25)
    found = image_quality(x, x + 0.1)
    assert float(found.psnr) == pytest.approx(20.0, abs=1e-4)
    assert float(found.l2) == pytest.approx(0.4, rel=1e-5)
    assert float(found.linf) == pytest.approx(0.1, rel=1e-5)


class Stand(nn.Module):
    """In place of LPIPS's network: remembers what it was shown, answers the mean difference."""

    shown: list[tuple[Tensor, Tensor]] = []  # noqa: RUF012

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "vgg"

    def forward(self, one: Tensor, other: Tensor, normalize: bool) -> Tensor:
        assert normalize, "LPIPS must be told that images are in [0, 1]"
        self.shown.append((one, other))
        return (one - other).abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def stand(monkeypatch):
    Stand.shown.clear()
    module = ModuleType("lpips")
    module.LPIPS = Stand
    monkeypatch.setitem(sys.modules, "lpips", module)
    lpips_vgg.cache_clear()
    yield
    lpips_vgg.cache_clear()


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    lpips_vgg.cache_clear()


def test_without_the_package_the_row_is_absent_and_says_how_to_get_it(absent):
    found = image_quality(*pair())
    assert found.lpips is None
    assert found.note == "LPIPS needs the package lpips: pip install 'fastpure[perceptual]'"
    assert found.note in str(found)
    assert "lpips " not in str(found)
    with pytest.raises(MissingExtra, match=r"fastpure\[perceptual\]"):
        image_quality(*pair(), lpips=True)
    assert image_quality(*pair(), lpips=False).note == "LPIPS was not asked for"


def test_with_the_package_it_is_measured_in_three_channels(stand):
    x, other = pair()
    found = image_quality(x, other, lpips=True)
    assert torch.allclose(found.lpips, (other - x).abs().mean((1, 2, 3)).double(), rtol=1e-5)
    assert (found.note, "lpips" in str(found)) == ("", True)
    grey = [u[:, :1] for u in (x, other)]
    image_quality(*grey, lpips=True)
    assert Stand.shown[-1][0].shape == (3, 3, 20, 17)


def test_it_is_not_downloaded_unasked(stand, monkeypatch, tmp_path):
    monkeypatch.setattr("fastpure.diagnostics.quality.find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = image_quality(*pair())
    assert found.lpips is None
    assert "lpips=True" in found.note
    assert not Stand.shown
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"")
    assert image_quality(*pair()).lpips is not None


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 20, 20)])
def test_images_that_lpips_cannot_see(stand, shape):
    found = image_quality(*pair(shape=shape))
    assert found.lpips is None
    assert "at least 16 x 16 pixels" in found.note
    with pytest.raises(ValueError, match="`lpips` must be None or False for images of shape"):
        image_quality(*pair(shape=shape), lpips=True)
    assert not Stand.shown


def test_refusals():
    x, other = pair()
    with pytest.raises(ValueError, match=r"`purified` must be of shape \[3, 3, 20, 17\] like x"):
        image_quality(x, other[:2])
    with pytest.raises(TypeError, match="`purified` must be a float32 tensor"):
        image_quality(x, other.numpy())
    with pytest.raises(ValueError, match="`purified` must be finite"):
        image_quality(x, other * torch.inf)
    with pytest.raises(ValueError, match=r"`x` must be in \[0, 1\]"):
        image_quality(other, x)
    with pytest.raises(ValueError, match="`x` must be at least one image"):
        image_quality(x[:0], x[:0])
    with pytest.raises(ValueError, match=r"`x` must be of shape \[B, C, H, W\]"):
        image_quality(x[0], other[0])
    with pytest.raises(TypeError, match="`lpips` must be True, False or None"):
        image_quality(x, other, lpips="vgg")


def test_it_is_public():
    assert fp.diagnostics.image_quality is image_quality
    assert "diagnostics" in fp.__all__
    assert all(getattr(fp.diagnostics, name) is not None for name in fp.diagnostics.__all__)
