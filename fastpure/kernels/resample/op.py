"""Resampling by two: the public operations and their registration."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpure.errors import mistake, one_of
from fastpure.kernels import registry, triton_support
from fastpure.kernels.activations import always, check_activations, check_like, dense, refuse_autograd
from fastpure.kernels.resample import impl_triton, reference

KINDS = ("up", "down")


def _by_reference(x: Tensor, spread: bool, scale: float, out: Tensor) -> None:
    out.copy_(reference.spread(x, scale) if spread else reference.gather(x, scale))


def _check(x: Tensor, spread: bool, scale: float, out: Tensor) -> Tensor:
    check_activations("x", x)
    batch, channels, height, width = x.shape
    if not spread and (height % 2 or width % 2):
        raise ValueError(mistake("x", "of even height and width to be halved", list(x.shape)))
    size = (2 * height, 2 * width) if spread else (height // 2, width // 2)
    check_like("out", out, x, (batch, channels, *size))
    return x


RESAMPLE = registry.OpSpec(
    name="resample",
    schema="(Tensor x, bool spread, float scale, Tensor(a!) out) -> ()",
    reference=reference.resample,
    impls={
        "triton": registry.Implementation(impl_triton.resample, triton_support.unavailable),
        "reference": registry.Implementation(_by_reference, always),
    },
    order={"cuda": ("triton", "reference")},
)
_run = registry.define(RESAMPLE, _check)


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
    batch, channels, height, width = x.shape
    size = (2 * height, 2 * width) if spread else (height // 2, width // 2)
    out = x.new_empty((batch, channels, *size)).contiguous(memory_format=torch.channels_last)
    _run(x, spread, scale, out)
    return out
