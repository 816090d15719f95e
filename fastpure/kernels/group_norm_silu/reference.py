"""GroupNorm, SiLU and resampling in plain torch: the definition the Triton kernels are tested against.

With the input h = [x', skip] (skip concatenated along channels) and per sample and group the mean m and
r = 1 / sqrt(variance + eps) (variance over the group's channels and pixels, biased)::

    x' = x + row (row added per channel), or total = (x + plus + row) scale, rounded to the dtype of x
    xhat = (h - m) r        n = xhat weight + bias        a = n / (1 + exp(-n))        y = R(a)

R is nearest-neighbour doubling ("up"), the mean of 2x2 pixels ("down") or nothing; without activation a = n.
Transposed, with v the cotangent of y, N the number of elements of a group, and other cotangents of h and of x'::

    g = weight (da/dn) R^T v        v_h = r (g - sum(g) / N - xhat sum(g xhat) / N) + add
    v_x = (v_h[x] + more) scale     v_skip = v_h[skip]

where a sum is transposed with x = total and row = 0, and v_x is the cotangent of both of its terms.

Half-precision inputs are computed in float32 and rounded once, at the end.

Source: Wu and He, "Group Normalization" (ECCV 2018); Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units"
(2018).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pointwise.reference import residual_add


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    skip: Tensor | None = None,
    row: Tensor | None = None,
    resample: str | None = None,
    activate: bool = True,
) -> tuple[Tensor, Tensor]:
    """(y, stats); differentiable by autograd. See :func:`fastpure.kernels.group_norm_silu`."""
    h = _input(x, skip, row)
    wide = h.dtype
    grouped = h.reshape(h.shape[0], groups, -1)
    mean = grouped.mean(-1)
    variance = (grouped - mean[..., None]).square().mean(-1)
    stats = torch.stack((mean, torch.rsqrt(variance + eps)), -1)
    n = _normalised(h, stats) * per_channel(weight, wide) + per_channel(bias, wide)
    y = resampled(F.silu(n) if activate else n, resample)
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last), stats


def group_norm_silu_of_sum(
    x: Tensor,
    plus: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    row: Tensor | None = None,
    scale: float = 1.0,
    skip: Tensor | None = None,
    resample: str | None = None,
    activate: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, stats, total); differentiable by autograd. See :func:`fastpure.kernels.group_norm_silu_of_sum`."""
    total = residual_add(x, plus, row, scale)
    options = {"skip": skip, "resample": resample, "activate": activate}
    return *group_norm_silu(total, weight, bias, groups, eps, **options), total  # type: ignore[arg-type]


def group_norm_silu_vjp(
    v: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    skip: Tensor | None = None,
    row: Tensor | None = None,
    resample: str | None = None,
    activate: bool = True,
    add: Tensor | None = None,
    more: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """(v_x, v_skip or None). See :func:`fastpure.kernels.group_norm_silu_vjp`."""
    h = _input(x, skip, row)
    wide = h.dtype
    stats = stats.to(wide)
    xhat = _normalised(h, stats)
    g = transposed(v.to(wide), resample)
    if activate:
        n = xhat * per_channel(weight, wide) + per_channel(bias, wide)
        s = torch.sigmoid(n)
        g = g * (s * (1 + n * (1 - s)))
    g = g * per_channel(weight, wide)
    shape = (h.shape[0], groups, -1)
    mean_g = g.reshape(shape).mean(-1)
    mean_gx = (g * xhat).reshape(shape).mean(-1)
    v_h = (g - _spread(mean_g, h) - xhat * _spread(mean_gx, h)) * _spread(stats[..., 1], h)
    if add is not None:
        v_h = v_h + add
    last = torch.channels_last
    v_x = v_h[:, : x.shape[1]]
    v_x = ((v_x if more is None else v_x + more) * scale).to(x.dtype).contiguous(memory_format=last)
    return v_x, None if skip is None else v_h[:, x.shape[1] :].to(x.dtype).contiguous(memory_format=last)


def resampled(a: Tensor, resample: str | None) -> Tensor:
    """R(a): [B, C, H, W] -> twice, half or the same height and width."""
    if resample == "up":
        return a.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if resample == "down":
        batch, channels, height, width = a.shape
        return a.reshape(batch, channels, height // 2, 2, width // 2, 2).mean((3, 5))
    return a


def transposed(v: Tensor, resample: str | None) -> Tensor:
    """R^T v."""
    if resample == "up":
        return resampled(v, "down") * 4
    if resample == "down":
        return resampled(v, "up") * 0.25
    return v


def per_channel(values: Tensor, dtype: torch.dtype) -> Tensor:
    """[C] or [n, C] -> [1 or n, C, 1, 1] in ``dtype``."""
    values = values.to(dtype)
    return (values if values.dim() == 2 else values[None])[:, :, None, None]


def _input(x: Tensor, skip: Tensor | None, row: Tensor | None) -> Tensor:
    """[x + row, skip] in float32, or float64 for float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide) if row is None else x.to(wide) + per_channel(row, wide)
    return h if skip is None else torch.cat([h, skip.to(wide)], 1)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """[B, groups] -> [B, C, 1, 1]."""
    return values.repeat_interleave(like.shape[1] // values.shape[1], 1)[:, :, None, None]


def _normalised(h: Tensor, stats: Tensor) -> Tensor:
    return (h - _spread(stats[..., 0], h)) * _spread(stats[..., 1], h)
