"""The row update and its transpose: the public operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastpure.errors import mistake
from fastpure.kernels import registry
from fastpure.kernels.cuda_support import by_device
from fastpure.kernels.keys import NoiseKeys, Stream
from fastpure.kernels.layout import (
    check_state,
    check_step_value,
    is_readable,
    like_state,
    memory_format_of,
)
from fastpure.kernels.row import checks, impl_cuda, impl_ext, reference
from fastpure.schedule.table import KERNEL_COLUMNS

CLIP = KERNEL_COLUMNS.index("clip")


def _widened(tensor: Tensor | None, state: Tensor) -> Tensor | None:
    """In the dtype of the state; kernels for CUDA do this as they read."""
    return None if tensor is None else tensor.to(state.dtype)


def _row_by_reference(*args: Any) -> None:
    x, noise_pred, guidance, register, noise, seed, ids, draws, table, step, stream, domain, *out = args
    x_next, register_next = out
    check_step_value(step, table.shape[0])
    source = noise if seed is None else NoiseKeys(seed, ids, draws, domain)
    new_x, new_register = reference.affine_row(
        x,
        _widened(noise_pred, x),
        _widened(guidance, x),
        register,
        table=table,
        step=step,
        noise=source,
        stream=stream,
        want_register=register_next is not None,
    )
    x_next.copy_(new_x)
    if register_next is not None:
        register_next.copy_(new_register)


def _vjp_by_reference(*args: Any) -> None:
    v, v_register, x, noise_pred, table, step, *outs = args
    check_step_value(step, table.shape[0])
    if x is None and is_readable(table) and float(table[int(step), CLIP]) != 0.0:
        raise ValueError(mistake("x", "the state of the row, because the row clips", "None"))
    results = reference.affine_row_vjp(
        v,
        v_register,
        x=x,
        noise_pred=_widened(noise_pred, v),
        table=table,
        step=step,
        want_guidance=outs[2] is not None,
        want_register=outs[3] is not None,
    )
    for out, result in zip(outs, results, strict=True):
        if out is not None:
            out.copy_(result)


def _always(device_type: str, dtype: torch.dtype) -> None:
    """The reference runs wherever torch does."""


ORDER = {"cpu": ("ext", "reference"), "cuda": ("ext", "reference")}
ROW = registry.OpSpec(
    name="affine_row",
    schema=(
        "(Tensor x, Tensor? noise_pred, Tensor? guidance, Tensor? register, Tensor? noise, Tensor? seed, "
        "Tensor? sample_ids, Tensor? draws, Tensor table, Tensor step, int stream, int domain, "
        "Tensor(a!) x_next, Tensor(b!)? register_next) -> ()"
    ),
    reference=reference.affine_row,
    impls={
        "ext": registry.Implementation(
            by_device(0, impl_ext.affine_row, impl_cuda.affine_row), impl_ext.unavailable
        ),
        "reference": registry.Implementation(_row_by_reference, _always),
    },
    order=ORDER,
)
VJP = registry.OpSpec(
    name="affine_row_vjp",
    schema=(
        "(Tensor v, Tensor? v_register, Tensor? x, Tensor? noise_pred, Tensor table, Tensor step, "
        "Tensor(a!) v_x, Tensor(b!) v_noise_pred, Tensor(c!)? v_guidance, Tensor(d!)? v_register_out) -> ()"
    ),
    reference=reference.affine_row_vjp,
    impls={
        "ext": registry.Implementation(
            by_device(0, impl_ext.affine_row_vjp, impl_cuda.affine_row_vjp), impl_ext.unavailable
        ),
        "reference": registry.Implementation(_vjp_by_reference, _always),
    },
    order=ORDER,
)
_run_row = registry.define(ROW, checks.check_row, checks.check_row_converted)
_run_vjp = registry.define(VJP, checks.check_vjp, checks.check_vjp_converted)


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
    """One row of a sampler table: ``x' = a x + b e + c g + p h + d z``, ``h' = q x + r e + u g + s h``.

    In rows with ``clip`` the network output is replaced where it predicts an image outside [-1, 1];
    :mod:`fastpure.kernels.row.reference` has the exact statement. Noise is generated in the same pass and is
    skipped where ``d`` is 0. Deterministic; capturable (``step``, keys and table are read from memory at run
    time); not recorded by autograd: pair it with :func:`affine_row_vjp` inside an autograd function.

    Args:
        x: state [B, C, H, W], float32 or float64, contiguous or channels_last (the result is laid out alike).
        noise_pred, guidance: network output e and guidance gradient g, shaped like ``x``, any floating dtype
            (bfloat16 and float16 beside a float32 state on CUDA are read as they are, others are converted).
        register: the saved quantity h of multi-step solvers, shaped like ``x``.
        table: [K, 16] in the dtype of ``x``; columns ``schedule.KERNEL_COLUMNS``, then zeros.
        step: int64 [1], the row; also the step of the noise.
        noise: keys to generate z from, or z itself [B, C, H, W], or None for none.
        stream: what generated noise is for.
        want_register: whether h' is wanted.

    Returns:
        (x', h' or None).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: an input requires a gradient while autograd records.
        KernelUnavailable: a back end was forced that cannot run here.
    """
    check_state("x", x)
    _refuse_autograd("affine_row", x, noise_pred, guidance, register, noise)
    fmt = memory_format_of(x)
    x = x.contiguous(memory_format=fmt)
    x_next = torch.empty_like(x)
    register_next = torch.empty_like(x) if want_register else None
    given: Tensor | None = None
    seed = ids = draws = None
    domain = 0
    if isinstance(noise, NoiseKeys):
        seed, ids, draws, domain = noise.seed, noise.sample_ids, noise.draws, int(noise.domain)
    else:
        given = like_state("noise", noise, x, fmt)
    _run_row(
        x,
        like_state("noise_pred", noise_pred, x, fmt),
        like_state("guidance", guidance, x, fmt),
        like_state("register", register, x, fmt),
        given,
        seed,
        ids,
        draws,
        table,
        step,
        int(stream),
        domain,
        x_next,
        register_next,
    )
    return x_next, register_next


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
    """The transpose of :func:`affine_row`; the noise plays no part in it.

    Args:
        v: cotangent of x' [B, C, H, W], float32 or float64.
        v_register: cotangent of h', or None where h' was not used.
        x, noise_pred: the state and network output of that row. Only rows with ``clip`` need them;
            a clipping row without ``x`` is an error on the CPU and gives NaN on CUDA (the flag is device
            memory).
        table, step: as in the forward call.
        want_guidance, want_register: whether the row had a guidance gradient, a register.

    Returns:
        (v_x, v_noise_pred, v_guidance or None, v_register or None), each laid out like ``v``.

    Raises:
        TypeError, ValueError, RuntimeError, KernelUnavailable: as :func:`affine_row`.
    """
    check_state("v", v)
    _refuse_autograd("affine_row_vjp", v, v_register)
    fmt = memory_format_of(v)
    v = v.contiguous(memory_format=fmt)
    v_x, v_noise_pred = torch.empty_like(v), torch.empty_like(v)
    v_guidance = torch.empty_like(v) if want_guidance else None
    v_register_out = torch.empty_like(v) if want_register else None
    _run_vjp(
        v,
        like_state("v_register", v_register, v, fmt),
        like_state("x", x, v, fmt),
        like_state("noise_pred", noise_pred, v, fmt),
        table,
        step,
        v_x,
        v_noise_pred,
        v_guidance,
        v_register_out,
    )
    return v_x, v_noise_pred, v_guidance, v_register_out


def _refuse_autograd(op: str, *inputs: Any) -> None:
    """Raise rather than cut a graph silently."""
    if not torch.is_grad_enabled():
        return
    if any(isinstance(i, Tensor) and i.requires_grad for i in inputs):
        raise RuntimeError(
            mistake("inputs", f"free of gradient recording in `{op}`", "a tensor that requires a gradient")
            + ". Call it inside an autograd function or under torch.no_grad()"
        )
