"""How much purified images differ from what they should be: distance, PSNR, SSIM, and LPIPS where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from ..attacks.low_frequency import lpips_vgg
from ..errors import mistake
from ..guidance import StructuralSimilarity
from ..shown import Card, Shown, per_image, spread
from .checks import check_images

BATCH = 64
"""Images in one call of LPIPS's network."""

SMALLEST = 16
"""Sides below which nothing is left for the last layer of VGG that LPIPS reads."""

GET_LPIPS = "LPIPS needs the package lpips: pip install 'fastpure[perceptual]'"
GET_WEIGHTS = (
    "LPIPS's VGG weights are not on this machine; image_quality(..., lpips=True) has them downloaded once"
)


@final
@dataclass(frozen=True, eq=False, repr=False)
class ImageQuality(Shown):
    """How far images are from others. All float64 [B], of images in [0, 1].

    Attributes:
        l2: L2 distance.
        linf: largest difference of a pixel.
        psnr: 10 log10(1 / mean squared difference) in dB; infinite where the images are equal.
        ssim: structural similarity (Wang et al. 2004): Gaussian window of 11 pixels with standard deviation 1.5, zeros
            beyond the edge, mean over pixels and channels; 1 where the images are equal.
        lpips: perceptual distance with VGG features (Zhang et al. 2018), None where it was not measured.
        note: why ``lpips`` is None, and how to get it.
    """

    l2: Tensor
    linf: Tensor
    psnr: Tensor
    ssim: Tensor
    lpips: Tensor | None = None
    note: str = ""

    def _shown(self) -> Card:
        columns = {name: getattr(self, name) for name in ("l2", "linf", "psnr", "ssim", "lpips")}
        known = {name: values for name, values in columns.items() if values is not None}
        note = (("note", self.note),) if self.note else ()
        return Card(
            f"ImageQuality of {len(self.l2)} images",
            (*((name, spread(values)) for name, values in known.items()), *note),
            grids=(per_image("images", tuple(known), tuple(known.values())),),
        )

    def __str__(self) -> str:
        names = ("l2", "linf", "psnr", "ssim", "lpips")
        found = {name: getattr(self, name) for name in names}
        lines = [
            f"{name:<6} {float(values.mean()):8.4f}" for name, values in found.items() if values is not None
        ]
        return "\n".join([f"means over {len(self.l2)} images", *lines, *([self.note] if self.note else [])])


@torch.no_grad()
def image_quality(x: Tensor, purified: Tensor, *, lpips: bool | None = None) -> ImageQuality:
    """How far ``purified`` images are from ``x``.

    Args:
        x: images [B, C, H, W] in [0, 1], at least one.
        purified: images alike; not every method clamps them, so they need only be finite.
        lpips: True measures LPIPS and lets its package download weights; None measures it only where package and
            weights are here; False does not.

    Raises:
        TypeError, ValueError: no such images, or with ``lpips=True`` some that LPIPS cannot see.
        MissingExtra: ``lpips=True`` without the package.
    """
    check_images(x)
    check_images(purified, "purified", like=x, bounded=False)
    if lpips is not None and not isinstance(lpips, bool):
        raise TypeError(mistake("lpips", "True, False or None", repr(lpips)))
    one, other = x.double(), purified.double()
    difference = (other - one).flatten(1)
    perceptual, note = _perceptual(x, purified, lpips)
    return ImageQuality(
        l2=difference.norm(dim=1),
        linf=difference.abs().amax(1),
        psnr=-10.0 * difference.square().mean(1).log10(),
        ssim=StructuralSimilarity(data_range=1.0).ssim(one, other),
        lpips=perceptual,
        note=note,
    )


def _perceptual(x: Tensor, purified: Tensor, wanted: bool | None) -> tuple[Tensor | None, str]:
    """(LPIPS float64 [B] or None, why None)."""
    if wanted is False:
        return None, "LPIPS was not asked for"
    if x.shape[1] not in (1, 3) or min(x.shape[2:]) < SMALLEST:
        note = f"LPIPS sees grey or colour images of at least {SMALLEST} x {SMALLEST} pixels"
        if wanted:
            raise ValueError(
                mistake("lpips", f"None or False for images of shape {list(x.shape)}", True, note)
            )
        return None, note
    if not wanted and (note := _missing()):
        return None, note
    metric: Callable[[Tensor, Tensor], Tensor] = lpips_vgg(str(x.device))
    batches = zip(purified.float().split(BATCH), x.float().split(BATCH), strict=True)
    return torch.cat([metric(one, other) for one, other in batches]).double(), ""


def _missing() -> str:
    """What LPIPS lacks on this machine, "" if nothing."""
    if find_spec("lpips") is None or find_spec("torchvision") is None:
        return GET_LPIPS
    weights = Path(torch.hub.get_dir(), "checkpoints").glob("vgg16-*.pth")
    return "" if any(weights) else GET_WEIGHTS
