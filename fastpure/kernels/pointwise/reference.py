"""Resampling by two and the end of a residual block in plain torch: what the Triton kernels are tested against.

"up": y[2h + i, 2w + j] = x[h, w]; "down": y[h, w] = mean of x[2h + i, 2w + j], i and j in {0, 1}. Each is the
other's transpose up to a factor: up^T = 4 down, down^T = up / 4.

A residual block ends in (a + b + bias) scale. Transposed, both branches get scale times the cotangent, which needs
no kernel of its own. Half precision is summed in float32 everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resample(x: Tensor, kind: str) -> Tensor:
    """See :func:`fastpure.kernels.resample`; differentiable by autograd."""
    return spread(x, 1.0) if kind == "up" else gather(x, 0.25)


def resample_vjp(v: Tensor, kind: str) -> Tensor:
    """See :func:`fastpure.kernels.resample_vjp`."""
    return gather(v, 1.0) if kind == "up" else spread(v, 0.25)


def spread(x: Tensor, scale: float) -> Tensor:
    """Every pixel, times ``scale``, to a block of 2x2."""
    values = (x * scale).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return values.contiguous(memory_format=torch.channels_last)


def gather(x: Tensor, scale: float) -> Tensor:
    """The sum of every block of 2x2, times ``scale``."""
    batch, channels, height, width = x.shape
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    total = wide.reshape(batch, channels, height // 2, 2, width // 2, 2).sum((3, 5)) * scale
    return total.to(x.dtype).contiguous(memory_format=torch.channels_last)


def residual_add(a: Tensor, b: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """See :func:`fastpure.kernels.residual_add`; differentiable by autograd."""
    wide = torch.promote_types(a.dtype, torch.float32)
    total = a.to(wide) + b.to(wide)
    if bias is not None:
        total = total + bias.to(wide)[..., None, None]
    return (total * scale).to(a.dtype).contiguous(memory_format=torch.channels_last)
