"""NCSN++'s filtered resampling: taps [1, 3, 3, 1] along both axes, by torch's convolutions; keeps nothing.

Source: Song et al., "Score-Based Generative Modeling through SDEs" (ICLR 2021), after StyleGAN 2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .products import product

FIR = (1.0, 3.0, 3.0, 1.0)
"""Taps of NCSN++'s resampling filter, the same along both axes, normalised to sum 1."""


def filtered(x: Tensor, kind: str, padding: int = 1) -> Tensor:
    """Filtered resampling of x [B, C, H, W] with zeros around it: "down" to half the size or "up" to twice.

    ``padding`` pixels of zeros on every side when going down; 0 takes inputs two pixels larger instead.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Fir.apply(x, kind == "up", padding)
    return _fir(x, kind == "up", padding, 4.0 if kind == "up" else 1.0)


def _fir(x: Tensor, up: bool, padding: int, gain: float) -> Tensor:
    weight = _taps(x.dtype, x.device, gain).expand(x.shape[1], 1, -1, -1)
    resample = F.conv_transpose2d if up else F.conv2d
    return product(resample, x, weight, stride=2, padding=padding, groups=x.shape[1])


_TAPS: dict[tuple[torch.dtype, torch.device, float], Tensor] = {}


def _taps(dtype: torch.dtype, device: torch.device, gain: float) -> Tensor:
    """The filter [4, 4] times ``gain``; made once, and by the device alone: nothing from the host is in a recording."""
    if is_in_torch_dispatch_mode() or torch.compiler.is_compiling():
        return _made_taps(dtype, device, gain)  # which may be a tracer's, and not be kept
    key = (dtype, device, gain)
    if key not in _TAPS:
        with torch.inference_mode(False):
            _TAPS[key] = _made_taps(dtype, device, gain)
    return _TAPS[key]


def _made_taps(dtype: torch.dtype, device: torch.device, gain: float) -> Tensor:
    place = torch.arange(4, dtype=dtype, device=device)
    taps = (place * (3 - place) + 1) / sum(FIR)  # 1, 3, 3, 1
    return gain * taps[:, None] * taps


class _Fir(Function):
    """Linear, and each direction is the transpose of the other, so that nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: bool, padding: int) -> Tensor:
        ctx.settings = (up, padding)
        return _fir(x, up, padding, 4.0 if up else 1.0)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        up, padding = ctx.settings
        return _fir(v, not up, padding, 4.0 if up else 1.0), None, None
