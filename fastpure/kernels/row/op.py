"""The row update and its transpose: the public operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import mistake
from ...schedule.table import KERNEL_COLUMNS, KERNEL_WIDTH
from .. import registry
from ..checks import (
    always,
    check_byte,
    check_images,
    check_state,
    check_step,
    check_step_value,
    is_readable,
    like_state,
    memory_format_of,
    refuse_autograd,
)
from ..extension import by_device
from ..keys import STEP_MAX, NoiseKeys, Stream, check_keys
from . import impl_cuda, impl_ext, reference

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


def _check_table(table: Tensor, state: Tensor, like: str) -> None:
    """Raise unless ``table`` is a dense [K, 16] matrix in the dtype and on the device of the state."""
    if not isinstance(table, Tensor):
        raise TypeError(mistake("table", f"a tensor [K, {KERNEL_WIDTH}]", type(table).__name__))
    shape = table.shape
    if len(shape) != 2 or shape[1] != KERNEL_WIDTH or not 1 <= shape[0] <= STEP_MAX + 1:
        raise ValueError(
            mistake("table", f"of shape [K, {KERNEL_WIDTH}], K in [1, {STEP_MAX + 1}]", list(shape))
        )
    if table.dtype != state.dtype:
        raise TypeError(mistake("table", f"of the dtype of `{like}`, {state.dtype}", table.dtype))
    if table.device != state.device:
        raise ValueError(mistake("table", f"on the device of `{like}`, {state.device}", table.device))
    if not table.is_contiguous():
        raise ValueError(mistake("table", "dense (call .contiguous())", f"strides {table.stride()}"))


def _check_row(*args: Any) -> Tensor:
    """Check the arguments of the operation ``affine_row`` (order of its schema); returns ``x``."""
    x, noise_pred, guidance, register, noise, *_, x_next, register_next = args
    check_state("x", x)
    images = {"noise_pred": noise_pred, "guidance": guidance, "register": register, "noise": noise}
    check_images(x, "x", images | {"x_next": x_next, "register_next": register_next})
    return _check_row_converted(*args)


def _check_row_converted(*args: Any) -> Tensor:
    """The same without the images, which the public function has made or converted itself."""
    x, _, _, _, noise, seed, ids, draws, table, step, stream, domain, _, _ = args
    _check_table(table, x, "x")
    check_step(step, x.device)
    check_byte("stream", stream)
    check_byte("domain", domain)
    if seed is not None:
        if noise is not None:
            raise ValueError(mistake("noise", "either an array or keys", "both"))
        check_keys(seed, ids, draws, x.shape[0], x.device)
    return x


def _check_vjp(*args: Any) -> Tensor:
    """Check the arguments of the operation ``affine_row_vjp`` (order of its schema); returns ``v``."""
    v, v_register, x, noise_pred, _, _, *outs = args
    check_state("v", v)
    names = ("v_x", "v_noise_pred", "v_guidance", "v_register_out")
    images = {"v_register": v_register, "x": x, "noise_pred": noise_pred}
    check_images(v, "v", images | dict(zip(names, outs, strict=True)))
    return _check_vjp_converted(*args)


def _check_vjp_converted(*args: Any) -> Tensor:
    """The same without the images, which the public function has made or converted itself."""
    v, table, step = args[0], args[4], args[5]
    _check_table(table, v, "v")
    check_step(step, v.device)
    return v


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
        "reference": registry.Implementation(_row_by_reference, always),
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
        "reference": registry.Implementation(_vjp_by_reference, always),
    },
    order=ORDER,
)
_run_row = registry.define(ROW, _check_row, _check_row_converted)
_run_vjp = registry.define(VJP, _check_vjp, _check_vjp_converted)


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
    refuse_autograd("affine_row", x, noise_pred, guidance, register, noise)
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
    refuse_autograd("affine_row_vjp", v, v_register)
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
