"""Activations gone over once: resampling by two and the end of a residual block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import mistake, one_of
from .. import registry, triton_support
from ..checks import always, check_activations, check_channels, check_like, dense, refuse_autograd
from ..extension import unavailable_for_activations
from . import impl_triton, launch, reference

KINDS = ("up", "down")
ORDER = {"cuda": ("triton", "reference"), "cpu": ("host", "reference")}


def _resample_by_reference(args: Any) -> None:
    function = reference.spread if args.spread else reference.gather
    args.out.copy_(function(args.x, args.scale))


def _check_resample(args: Any) -> Tensor:
    x: Tensor = args.x
    check_activations("x", x)
    if not args.spread and (x.shape[2] % 2 or x.shape[3] % 2):
        raise ValueError(mistake("x", "of even height and width to be halved", list(x.shape)))
    check_like("out", args.out, x, _resampled_shape(x, args.spread))
    return x


RESAMPLE = registry.OpSpec(
    name="resample",
    schema="(Tensor x, bool spread, float scale, Tensor(a!) out) -> ()",
    reference=reference.resample,
    impls={
        "host": registry.Implementation.of(launch.resample, unavailable_for_activations),
        "triton": registry.Implementation(impl_triton.resample, triton_support.unavailable),
        "reference": registry.Implementation.of(_resample_by_reference, always),
    },
    order=ORDER,
)
_run_resample = registry.define(RESAMPLE, _check_resample)


def resample(x: Tensor, kind: str) -> Tensor:
    """Twice the height and width by copying pixels ("up"), or half by the mean of 2x2 ("down").

    Deterministic; capturable; not recorded by autograd: pair it with :func:`resample_vjp`.

    Args:
        x: [B, C, H, W], float32, float64, bfloat16 or float16; copied unless channels_last.
        kind: "up" or "down" (H and W even).

    Returns:
        [B, C, 2 H, 2 W] or [B, C, H/2, W/2], channels_last, in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: ``x`` requires a gradient while autograd records.
        KernelUnavailable: a back end was forced that cannot run here.
    """
    refuse_autograd("resample", x)
    return _scaled(dense("x", x), one_of("kind", kind, KINDS) == "up", 1.0 if kind == "up" else 0.25)


def resample_vjp(v: Tensor, kind: str) -> Tensor:
    """The transpose of :func:`resample`: sums of 2x2 for "up", a quarter to each pixel for "down".

    Args:
        v: cotangent of the result.
        kind: as in the forward call.

    Returns:
        The cotangent of x, channels_last, in the dtype of v.
    """
    refuse_autograd("resample_vjp", v)
    return _scaled(dense("v", v), one_of("kind", kind, KINDS) == "down", 1.0 if kind == "up" else 0.25)


def _scaled(x: Tensor, spread: bool, scale: float) -> Tensor:
    shape = _resampled_shape(x, spread)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _run_resample(x, spread, scale, out)
    return out


def _resampled_shape(x: Tensor, spread: bool) -> tuple[int, ...]:
    batch, channels, height, width = x.shape
    size = (2 * height, 2 * width) if spread else (height // 2, width // 2)
    return batch, channels, *size


def _residual_by_reference(args: Any) -> None:
    args.out.copy_(reference.residual_add(args.a, args.b, args.bias, args.scale))


def _check_residual(args: Any) -> Tensor:
    a: Tensor = args.a
    check_activations("a", a)
    check_like("b", args.b, a, tuple(a.shape))
    check_like("out", args.out, a, tuple(a.shape))
    if args.bias is not None:
        check_channels("bias", args.bias, a, a.shape[1])
    return a


RESIDUAL = registry.OpSpec(
    name="residual_add",
    schema="(Tensor a, Tensor b, Tensor? bias, float scale, Tensor(a!) out) -> ()",
    reference=reference.residual_add,
    impls={
        "host": registry.Implementation.of(launch.residual_add, unavailable_for_activations),
        "triton": registry.Implementation(impl_triton.residual_add, triton_support.unavailable),
        "reference": registry.Implementation.of(_residual_by_reference, always),
    },
    order=ORDER,
)
_run_residual = registry.define(RESIDUAL, _check_residual)


def residual_add(a: Tensor, b: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """(a + b + bias) scale in one pass; ``bias`` is that of the convolutions that made a and b.

    Deterministic; capturable; not recorded by autograd (transposed, both branches get ``scale`` times v).

    Args:
        a, b: [B, C, H, W], float32, float64, bfloat16 or float16, alike; copied unless channels_last.
        bias: [C], or [1 or B, C], floating, or None.
        scale: for instance 1/sqrt(2).

    Returns:
        [B, C, H, W], channels_last, in the dtype of a.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: an input requires a gradient while autograd records.
        KernelUnavailable: a back end was forced that cannot run here.
    """
    refuse_autograd("residual_add", a, b, bias)
    a, b = dense("a", a), dense("b", b)
    out = torch.empty_like(a)
    _run_residual(a, b, bias, float(scale), out)
    return out
