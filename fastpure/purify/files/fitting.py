"""Pictures of another size than the diffusion model's: in tiles, resized, or the middle of them."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError
from ..purifier import Purifier

FITS: dict[str, str] = {
    "tile": "overlapping tiles of the model's size, joined without seams; the picture keeps its size",
    "resize": "resized to the model's size and back, which keeps the size and loses detail",
    "crop": "only the middle of it, in the model's size",
}
"""Ways to fit a picture, with what they do."""

APART = ("tile", "resize")
"""Of these the pictures that keep their own size, so that no two of them make a batch."""


def fitted(x: Tensor, fit: str, shape: tuple[int, int, int], source: str) -> Tensor:
    """What a purifier is given of a picture ``x`` [1, C, H, W]: all of it, or the middle.

    Raises:
        DataError: it is smaller than what is to be cut out of it.
    """
    if fit != "crop":
        return x
    height, width = shape[1:]
    if x.shape[2] < height or x.shape[3] < width:
        found, wanted = f"{x.shape[3]}x{x.shape[2]}", f"{width}x{height}"
        raise DataError(f"{source}: {found}, too small to cut {wanted} out of it. Use --fit tile or resize")
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width].contiguous()


@final
class Fitting:
    """A purifier for images of any size, without gradient.

    Args:
        purifier: for images of its own size.
        fit: of those that have another, one of ``FITS``.
        batch_size: tiles purified together.
    """

    def __init__(self, purifier: Purifier, fit: str, batch_size: int) -> None:
        self.purifier, self.fit, self.batch_size = purifier, fit, batch_size
        self._tiled: Purifier | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, sample_ids: list[int], draw: int) -> Tensor:
        """Purify ``images`` [B, C, H, W] in [0, 1] of one size."""
        x = images.to(self.purifier.device)
        size, own = tuple(x.shape[2:]), self.purifier.image_shape[1:]
        if size == own:
            return self.purifier(x, sample_ids, draw)
        if self.fit == "resize":
            small = _resized(x, own)
            return _resized(self.purifier(small, sample_ids, draw), size)
        if self._tiled is None or self._tiled.image_shape[1:] != size:
            height, width = size
            self._tiled = self.purifier.tiled(height, width, batch_size=self.batch_size)
        return self._tiled(x, sample_ids, draw)


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bilinear, with the averaging that shrinking needs."""
    settings: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return F.interpolate(x, size=size, **settings).clamp(0.0, 1.0)
