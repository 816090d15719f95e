"""One row of a sampler table in plain torch: the definition the accelerated versions are tested against.

With state x, network output e, guidance gradient g, register h and noise z (an absent input counts as 0)::

    if clip:  x0 = (x - sigma e) / alpha
              e' = e                               where |x0| <= 1 (inclusive; NaN counts as inside)
              e' = (x - alpha sign(x0)) / sigma    elsewhere
    else:     e' = e
    x_next = a x + (b e' + (c g + (p h + d z)))
    h_next = q x + (r e' + (u g + s h))

and transposed, with v and w the cotangents of x_next and h_next, and M = 1 inside, 0 elsewhere::

    ve  = b v + r w
    v_e = M ve         v_x = a v + q w + (1 - M) ve / sigma
    v_g = c v + u w    v_h = p v + s w

The parentheses are the order of operations of every implementation; the accelerated ones use one fused
multiply-add per term, and this one rounds where torch rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...schedule.table import KERNEL_COLUMNS
from ..keys import NoiseKeys, Stream
from ..noise.reference import philox_normal

Coefficient = float | Tensor


def affine_row(
    x: Tensor,
    noise_pred: Tensor | None = None,
    guidance: Tensor | None = None,
    register: Tensor | None = None,
    *,
    table: Tensor,
    step: Tensor,
    noise: NoiseKeys | Tensor | None,
    stream: Stream | int = Stream.REVERSE,
    want_register: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The update of one step; differentiable by autograd. See :func:`fastpure.kernels.affine_row`."""
    row = _row(table, step)
    e = _clipped_noise_pred(x, noise_pred, row)
    z: Tensor | None = None
    if not (isinstance(row["d"], float) and row["d"] == 0.0):
        if isinstance(noise, NoiseKeys):
            z = philox_normal(noise, step, stream, tuple(x.shape[1:]), dtype=x.dtype)
        else:
            z = noise
    x_next = _sum(x, (row["d"], z), (row["p"], register), (row["c"], guidance), (row["b"], e), (row["a"], x))
    if not want_register:
        return x_next, None
    h_next = _sum(x, (row["s"], register), (row["u"], guidance), (row["r"], e), (row["q"], x))
    return x_next, h_next


def affine_row_vjp(
    v: Tensor,
    v_register: Tensor | None = None,
    *,
    x: Tensor | None,
    noise_pred: Tensor | None,
    table: Tensor,
    step: Tensor,
    want_guidance: bool,
    want_register: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The transposed row. See :func:`fastpure.kernels.affine_row_vjp`."""
    row = _row(table, step)
    w = v_register
    ve = _sum(v, (row["r"], w), (row["b"], v))
    v_x = _sum(v, (row["q"], w), (row["a"], v))
    clip = row["clip"]
    if x is not None and not (isinstance(clip, float) and clip == 0.0):
        outside, _ = _outside(x, noise_pred, row)
        zero = torch.zeros((), dtype=v.dtype, device=v.device)
        v_x = _sum(v, (row["q"], w)) + torch.where(outside, ve / _safe(row["sigma"]), zero)
        v_x = _add(v_x, row["a"], v)
        ve = torch.where(outside, zero, ve)
    v_g = _sum(v, (row["u"], w), (row["c"], v)) if want_guidance else None
    v_h = _sum(v, (row["s"], w), (row["p"], v)) if want_register else None
    return v_x, ve, v_g, v_h


def _row(table: Tensor, step: Tensor) -> dict[str, Coefficient]:
    """The named coefficients of one row: plain numbers on the CPU, 0-dimensional tensors elsewhere.

    Numbers can be branched upon; on an accelerator that would stop for the device, so tensors stay tensors.
    """
    row = table.index_select(0, step)[0]
    values = row.tolist() if row.device.type == "cpu" else row.unbind()
    return dict(zip(KERNEL_COLUMNS, values, strict=False))


def _safe(value: Coefficient) -> Coefficient:
    """1 instead of 0, so that branches which are not taken stay finite (and keep autograd free of NaN)."""
    if isinstance(value, float):
        return value if value != 0.0 else 1.0
    return torch.where(value == 0, torch.ones_like(value), value)


def _outside(x: Tensor, e: Tensor | None, row: dict[str, Coefficient]) -> tuple[Tensor, Tensor]:
    """Where the predicted image leaves [-1, 1] in a clipping row, and the prediction itself."""
    x0 = (x if e is None else x - row["sigma"] * e) / _safe(row["alpha"])
    outside = x0.abs() > 1.0
    if isinstance(row["clip"], Tensor):
        outside = outside & (row["clip"] != 0)
    return outside, x0


def _clipped_noise_pred(x: Tensor, e: Tensor | None, row: dict[str, Coefficient]) -> Tensor | None:
    if isinstance(row["clip"], float) and row["clip"] == 0.0:
        return e
    outside, x0 = _outside(x, e, row)
    edge = (x - row["alpha"] * torch.sign(x0.detach())) / _safe(row["sigma"])
    return torch.where(outside, edge, torch.zeros_like(x) if e is None else e)


def _sum(like: Tensor, *terms: tuple[Coefficient, Tensor | None]) -> Tensor:
    """The sum of coefficient times tensor, starting with the first term; absent tensors are skipped."""
    total: Tensor | None = None
    for coefficient, tensor in terms:
        if tensor is not None:
            total = coefficient * tensor if total is None else _add(total, coefficient, tensor)
    return torch.zeros_like(like) if total is None else total


def _add(total: Tensor, coefficient: Coefficient, tensor: Tensor) -> Tensor:
    """``coefficient * tensor + total`` in one operation."""
    if isinstance(coefficient, float):
        return torch.add(total, tensor, alpha=coefficient)
    return torch.addcmul(total, tensor, coefficient)
