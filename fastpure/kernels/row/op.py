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
from ..extension import unavailable_on_cuda, unavailable_on_host
from ..keys import STEP_MAX, NoiseKeys, Stream, check_keys
from . import launch, reference

CLIP = KERNEL_COLUMNS.index("clip")


def _widened(tensor: Tensor | None, state: Tensor) -> Tensor | None:
    """In the dtype of the state; kernels for CUDA do this as they read."""
    return None if tensor is None else tensor.to(state.dtype)


def _row_by_reference(args: Any) -> None:
    check_step_value(args.step, args.table.shape[0])
    keys = None if args.seed is None else NoiseKeys(args.seed, args.sample_ids, args.draws, args.domain)
    x_next, register_next = reference.affine_row(
        args.x,
        _widened(args.noise_pred, args.x),
        _widened(args.guidance, args.x),
        args.register,
        table=args.table,
        step=args.step,
        noise=args.noise if keys is None else keys,
        stream=args.stream,
        want_register=args.register_next is not None,
    )
    args.x_next.copy_(x_next)
    if args.register_next is not None:
        args.register_next.copy_(register_next)


def _vjp_by_reference(args: Any) -> None:
    table, step = args.table, args.step
    check_step_value(step, table.shape[0])
    if args.x is None and is_readable(table) and float(table[int(step), CLIP]) != 0.0:
        raise ValueError(mistake("x", "the state of the row, because the row clips", "None"))
    results = reference.affine_row_vjp(
        args.v,
        args.v_register,
        x=args.x,
        noise_pred=_widened(args.noise_pred, args.v),
        table=table,
        step=step,
        want_guidance=args.v_guidance is not None,
        want_register=args.v_register_out is not None,
    )
    outs = (args.v_x, args.v_noise_pred, args.v_guidance, args.v_register_out)
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


def _check_row(args: Any) -> Tensor:
    """Check the arguments of the operation ``affine_row``; returns ``x``."""
    check_state("x", args.x)
    names = ("noise_pred", "guidance", "register", "noise", "x_next", "register_next")
    check_images(args.x, "x", {name: getattr(args, name) for name in names})
    return _check_row_converted(args)


def _check_row_converted(args: Any) -> Tensor:
    """The same without the images, which the public function has made or converted itself."""
    x: Tensor = args.x
    _check_table(args.table, x, "x")
    check_step(args.step, x.device)
    check_byte("stream", args.stream)
    check_byte("domain", args.domain)
    if args.seed is not None:
        if args.noise is not None:
            raise ValueError(mistake("noise", "either an array or keys", "both"))
        check_keys(args.seed, args.sample_ids, args.draws, x.shape[0], x.device)
    return x


def _check_vjp(args: Any) -> Tensor:
    """Check the arguments of the operation ``affine_row_vjp``; returns ``v``."""
    check_state("v", args.v)
    others = {name: image for name, image in args._asdict().items() if name not in ("v", "table", "step")}
    check_images(args.v, "v", others)
    return _check_vjp_converted(args)


def _check_vjp_converted(args: Any) -> Tensor:
    """The same without the images, which the public function has made or converted itself."""
    v: Tensor = args.v
    _check_table(args.table, v, "v")
    check_step(args.step, v.device)
    return v


ORDER = {"cpu": ("host", "reference"), "cuda": ("cuda", "reference")}
ROW = registry.OpSpec(
    name="affine_row",
    schema=(
        "(Tensor x, Tensor? noise_pred, Tensor? guidance, Tensor? register, Tensor? noise, Tensor? seed, "
        "Tensor? sample_ids, Tensor? draws, Tensor table, Tensor step, int stream, int domain, "
        "Tensor(a!) x_next, Tensor(b!)? register_next) -> ()"
    ),
    reference=reference.affine_row,
    impls={
        "host": registry.Implementation.of(launch.affine_row, unavailable_on_host),
        "cuda": registry.Implementation.of(launch.affine_row, unavailable_on_cuda),
        "reference": registry.Implementation.of(_row_by_reference, always),
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
        "host": registry.Implementation.of(launch.affine_row_vjp, unavailable_on_host),
        "cuda": registry.Implementation.of(launch.affine_row_vjp, unavailable_on_cuda),
        "reference": registry.Implementation.of(_vjp_by_reference, always),
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
