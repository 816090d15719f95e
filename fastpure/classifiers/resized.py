"""Bilinear resizing as a differentiable, deterministic linear map; and classifiers that see another size."""

from __future__ import annotations

from functools import lru_cache
from typing import final

import torch
from torch import Tensor, nn

from ..errors import mistake, whole


def resize(x: Tensor, size: int) -> Tensor:
    """Square images ``[B, C, S, S]`` as ``[B, C, size, size]``, bilinear without antialiasing.

    What ``F.interpolate(mode="bilinear", align_corners=False)`` computes, which is how DiffPure goes from 224 to
    256 and back. Here it is two products with small matrices, so that its gradient has a fixed order of summation
    on every device (the gradient of CUDA's interpolation has not), and exists to any order.

    Raises:
        ValueError: the images are not square.
    """
    if x.dim() != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(mistake("x", "square images [B, C, S, S]", list(x.shape)))
    if x.shape[2] == size:
        return x
    weights = _weights(x.shape[2], size).to(device=x.device, dtype=x.dtype)
    return weights @ x @ weights.T


@final
class Resized(nn.Module):
    """``module`` for images of another size: ``[B, C, S, S]`` are resized to ``[B, C, size, size]`` first.

    For a classifier of 224x224 images that guides a diffusion model of 256x256 ones.
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module, self.size = module, whole("size", size, 1)
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(resize(x, self.size))

    def extra_repr(self) -> str:
        """The size, for printing."""
        return f"size={self.size}"


@lru_cache(maxsize=16)
def _weights(before: int, after: int) -> Tensor:
    """float64 ``[after, before]``: each output pixel's two neighbours, pixels being areas, edges repeated."""
    centres = ((torch.arange(after, dtype=torch.float64) + 0.5) * before / after - 0.5).clamp(min=0)
    left = centres.floor().long().clamp(max=before - 1)
    share = centres - left
    weights = torch.zeros(after, before, dtype=torch.float64)
    rows = torch.arange(after)
    weights.index_put_((rows, left), 1 - share, accumulate=True)
    weights.index_put_((rows, (left + 1).clamp(max=before - 1)), share, accumulate=True)
    return weights
