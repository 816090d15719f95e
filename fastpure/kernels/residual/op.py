"""The end of a residual block: the public operation and its registration."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpure.kernels import registry, triton_support
from fastpure.kernels.activations import (
    always,
    check_activations,
    check_channels,
    check_like,
    dense,
    refuse_autograd,
)
from fastpure.kernels.residual import impl_triton, reference


def _by_reference(a: Tensor, b: Tensor, bias: Tensor | None, scale: float, out: Tensor) -> None:
    out.copy_(reference.residual_add(a, b, bias, scale))


def _check(a: Tensor, b: Tensor, bias: Tensor | None, scale: float, out: Tensor) -> Tensor:
    check_activations("a", a)
    shape = tuple(a.shape)
    check_like("b", b, a, shape)
    check_like("out", out, a, shape)
    if bias is not None:
        check_channels("bias", bias, a, a.shape[1], batched=False)
    return a


RESIDUAL = registry.OpSpec(
    name="residual_add",
    schema="(Tensor a, Tensor b, Tensor? bias, float scale, Tensor(a!) out) -> ()",
    reference=reference.residual_add,
    impls={
        "triton": registry.Implementation(impl_triton.residual_add, triton_support.unavailable),
        "reference": registry.Implementation(_by_reference, always),
    },
    order={"cuda": ("triton", "reference")},
)
_run = registry.define(RESIDUAL, _check)


def residual_add(a: Tensor, b: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """(a + b + bias) scale in one pass; ``bias`` is that of the convolutions that made a and b.

    Deterministic; capturable; not recorded by autograd (transposed, both branches get ``scale`` times v).

    Args:
        a, b: [B, C, H, W], float32, float64, bfloat16 or float16, alike; copied unless channels_last.
        bias: [C], floating, or None.
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
    _run(a, b, bias, float(scale), out)
    return out
