"""GroupNorm + SiLU (+ 2x resampling): the public operations and their registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import mistake, one_of, positive, whole
from .. import registry, triton_support
from ..checks import (
    NARROW_DTYPES,
    always,
    carries_derivatives,
    check_activations,
    check_channels,
    check_like,
    dense,
    refuse_autograd,
)
from ..extension import ACTIVATIONS, unavailable_for_activations
from ..pointwise.reference import residual_add
from . import impl_triton, launch, reference

RESAMPLE_CODES: dict[str | None, int] = {None: 0, "up": 1, "down": 2}
RESAMPLE_NAMES = {code: name for name, code in RESAMPLE_CODES.items()}
_WIDE = {torch.float64: torch.float64} | dict.fromkeys((torch.float32, *NARROW_DTYPES), torch.float32)
"""Dtype of the activations -> dtype of the statistics."""

ORDER = {"cuda": ("triton", "reference"), "cpu": ("host", "reference")}


def _forward_by_reference(args: Any) -> None:
    x, row = args.x, args.row
    if args.plus is not None:
        x, row = residual_add(x, args.plus, row, args.scale), None
        args.total.copy_(x)
    y, stats = reference.group_norm_silu(
        x,
        args.weight,
        args.bias,
        args.groups,
        args.eps,
        skip=args.skip,
        row=row,
        resample=RESAMPLE_NAMES[args.resample],
        activate=args.activate,
    )
    args.y.copy_(y)
    args.stats.copy_(stats)


def _backward_by_reference(args: Any) -> None:
    v_x, v_skip = reference.group_norm_silu_vjp(
        args.v,
        args.x,
        args.stats,
        args.weight,
        args.bias,
        args.groups,
        skip=args.skip,
        row=args.row,
        resample=RESAMPLE_NAMES[args.resample],
        activate=args.activate,
        add=args.add,
        more=args.more,
        scale=args.scale,
    )
    args.v_x.copy_(v_x)
    if args.v_skip is not None and v_skip is not None:
        args.v_skip.copy_(v_skip)


def _check_forward(args: Any) -> Tensor:
    """Check the arguments of ``group_norm_silu``; returns ``x``."""
    x: Tensor = args.x
    channels = _check_input(args)
    positive("eps", args.eps)
    check_like("y", args.y, x, _output_shape(x, channels, args.resample))
    _check_stats(args.stats, x, args.groups)
    if (args.plus is None) != (args.total is None):
        raise ValueError(mistake("total", "given exactly where `plus` is", "one without the other"))
    for name in ("plus", "total"):
        if (image := getattr(args, name)) is not None:
            check_like(name, image, x, tuple(x.shape))
    return x


def _check_backward(args: Any) -> Tensor:
    """Check the arguments of ``group_norm_silu_vjp``; returns ``x``."""
    x: Tensor = args.x
    channels = _check_input(args)
    check_like("v", args.v, x, _output_shape(x, channels, args.resample))
    _check_stats(args.stats, x, args.groups)
    if args.add is not None:
        check_like("add", args.add, x, (x.shape[0], channels, *x.shape[2:]))
    if args.more is not None:
        check_like("more", args.more, x, tuple(x.shape))
    check_like("v_x", args.v_x, x, tuple(x.shape))
    if (args.skip is None) != (args.v_skip is None):
        raise ValueError(mistake("v_skip", "given exactly where `skip` is", "one without the other"))
    if args.v_skip is not None:
        check_like("v_skip", args.v_skip, x, tuple(args.skip.shape))
    return x


def _output_shape(x: Tensor, channels: int, resample: int) -> tuple[int, ...]:
    """[B, channels, H', W'] behind the resampling."""
    height, width = x.shape[2:]
    if resample == RESAMPLE_CODES["up"]:
        return x.shape[0], channels, 2 * height, 2 * width
    if resample == RESAMPLE_CODES["down"]:
        return x.shape[0], channels, height // 2, width // 2
    return x.shape[0], channels, height, width


def _check_resample(x: Tensor, resample: int) -> None:
    """Raise unless ``resample`` is a known code and ``x`` can be halved where it asks for that."""
    one_of("resample", resample, RESAMPLE_NAMES)
    if resample == RESAMPLE_CODES["down"] and (x.shape[2] % 2 or x.shape[3] % 2):
        raise ValueError(mistake("x", "of even height and width to be halved", list(x.shape)))


def _check_input(args: Any) -> int:
    """Everything both directions share; returns the number of channels."""
    x, skip, groups = args.x, args.skip, args.groups
    check_activations("x", x)
    channels: int = x.shape[1]
    if skip is not None:
        check_activations("skip", skip)
        check_like("skip", skip, x, (x.shape[0], skip.shape[1], *x.shape[2:]))
        channels += skip.shape[1]
    whole("groups", groups, 1)
    if channels % groups:
        raise ValueError(mistake("groups", f"a divisor of the {channels} channels", groups))
    _check_resample(x, args.resample)
    if args.row is not None:
        check_channels("row", args.row, x, x.shape[1])
    check_channels("weight", args.weight, x, channels)
    check_channels("bias", args.bias, x, channels)
    return channels


def _check_stats(stats: Tensor, x: Tensor, groups: int) -> None:
    wanted = torch.promote_types(x.dtype, torch.float32)
    shape = (x.shape[0], groups, 2)
    if stats.dtype != wanted or tuple(stats.shape) != shape or not stats.is_contiguous():
        got = f"{stats.dtype} {list(stats.shape)}"
        raise ValueError(mistake("stats", f"dense {wanted} of shape {list(shape)}", got))
    if stats.device != x.device:
        raise ValueError(mistake("stats", f"on the device of the input, {x.device}", stats.device))


FORWARD = registry.OpSpec(
    name="group_norm_silu",
    schema=(
        "(Tensor x, Tensor? skip, Tensor? row, Tensor weight, Tensor bias, int groups, float eps, "
        "int resample, bool activate, Tensor(a!) y, Tensor(b!) stats, Tensor? plus, float scale, "
        "Tensor(c!)? total) -> ()"
    ),
    reference=reference.group_norm_silu,
    impls={
        "host": registry.Implementation.of(launch.group_norm_silu, unavailable_for_activations),
        "triton": registry.Implementation(impl_triton.group_norm_silu, triton_support.unavailable),
        "reference": registry.Implementation.of(_forward_by_reference, always),
    },
    order=ORDER,
)
BACKWARD = registry.OpSpec(
    name="group_norm_silu_vjp",
    schema=(
        "(Tensor v, Tensor x, Tensor? skip, Tensor? row, Tensor weight, Tensor bias, Tensor stats, int groups, "
        "int resample, bool activate, Tensor? add, Tensor(a!) v_x, Tensor(b!)? v_skip, Tensor? more, "
        "float scale) -> ()"
    ),
    reference=reference.group_norm_silu_vjp,
    impls={
        "host": registry.Implementation.of(launch.group_norm_silu_vjp, unavailable_for_activations),
        "triton": registry.Implementation(impl_triton.group_norm_silu_vjp, triton_support.unavailable),
        "reference": registry.Implementation.of(_backward_by_reference, always),
    },
    order=ORDER,
)
_run_forward = registry.define(FORWARD, _check_forward)
_run_backward = registry.define(BACKWARD, _check_backward)


def fused_on_host(x: Tensor) -> bool:
    """Whether the extension's kernels serve ``x`` as it lies in host memory: [B, C, H, W] dense in channels_last.

    Not while a compiler traces (it fuses torch's operations itself) or derivatives are carried along with the
    values (``torch.func``, forward mode), which no kernel does.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in ACTIVATIONS
        and not carries_derivatives()
        and x.is_contiguous(memory_format=torch.channels_last)
        and registry.choose(FORWARD, "cpu", x.dtype) == "host"
        and not torch.compiler.is_compiling()
    )


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
    """R(SiLU(GroupNorm([x + row, skip]))), and the statistics its transpose needs.

    One pass over memory where a program can hold a group, two where not. Statistics are two-pass and float32
    (float64 for float64). Deterministic, and independent of the batch around a sample; capturable; not recorded
    by autograd: pair it with :func:`group_norm_silu_vjp` inside an autograd function, keeping ``x``, ``skip`` and
    ``stats``. A scale and shift of the normalised tensor (ADM) is a ``weight`` and ``bias`` per sample:
    ``weight (1 + scale)`` and ``bias (1 + scale) + shift``.

    Args:
        x: [B, C1, H, W], float32, float64, bfloat16 or float16; copied unless channels_last.
        weight, bias: [C], or [1 or B, C], floating, C = C1 + C2.
        groups: a divisor of C.
        eps: added to the variance, above 0.
        skip: [B, C2, H, W] like x, taken as concatenated behind x along channels (no concatenation is made).
        row: [C1], or [1 or B, C1]: added to every pixel of x first (a time embedding, a convolution's bias).
        resample: R: "up" (nearest-neighbour doubling), "down" (mean of 2x2 pixels, H and W even) or None.
        activate: without it the SiLU is left out.

    Returns:
        (y [B, C, H', W'] channels_last in the dtype of x, stats [B, groups, 2]: mean and 1/sqrt(variance + eps)).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: an input requires a gradient while autograd records.
        KernelUnavailable: a back end was forced that cannot run here.
    """
    y, stats, _ = _forward(
        "group_norm_silu", x, None, weight, bias, groups, eps, skip, row, resample, activate, 1.0
    )
    return y, stats


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
    """:func:`group_norm_silu` of total = (x + plus + row) scale, and that sum: one block ends and the next begins.

    The same bits as :func:`residual_add` followed by :func:`group_norm_silu`, in one pass.

    Args:
        x, plus: [B, C1, H, W], alike.
        row: [C1], or [1 or B, C1], floating, or None.
        scale: of the sum.
        weight, bias, groups, eps, skip, resample, activate: as in :func:`group_norm_silu`.

    Returns:
        (y, stats, total [B, C1, H, W] channels_last in the dtype of x). To transpose, :func:`group_norm_silu_vjp` takes
        total as its x, no row, and ``scale``.

    Raises:
        TypeError, ValueError, RuntimeError, KernelUnavailable: as :func:`group_norm_silu`.
    """
    name = "group_norm_silu_of_sum"
    y, stats, total = _forward(
        name, x, dense("plus", plus), weight, bias, groups, eps, skip, row, resample, activate, scale
    )
    assert total is not None
    return y, stats, total


def _forward(
    name: str,
    x: Tensor,
    plus: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    skip: Tensor | None,
    row: Tensor | None,
    resample: str | None,
    activate: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    refuse_autograd(name, x, skip, row, weight, bias, plus)
    code = RESAMPLE_CODES[one_of("resample", resample, RESAMPLE_CODES)]
    x, skip = dense("x", x), None if skip is None else dense("skip", skip)
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    shape = _output_shape(x, channels, code)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    stats = torch.empty((x.shape[0], groups, 2), dtype=_WIDE.get(x.dtype), device=x.device)
    total = None if plus is None else torch.empty_like(x)
    # Whole numbers for eps and scale would reach the extension as their bits, not as their values.
    numbers = groups, float(eps), code, activate
    _run_forward(x, skip, row, weight, bias, *numbers, y, stats, plus, float(scale), total)
    return y, stats, total


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
    """The transpose of :func:`group_norm_silu` in x and skip, for frozen weight, bias and row.

    Args:
        v: cotangent of y [B, C, H', W'].
        x, weight, bias, groups, skip, row, resample, activate: as in the forward call.
        stats: what the forward call returned.
        add: [B, C, H, W], another cotangent of [x, skip] to be added in the same pass (a shortcut's).
        more: [B, C1, H, W], another one of x.
        scale: what v_x is multiplied with: that of the sum, if x is the total of one. Then x is transposed as an input
            of its own, without row, and v_x is the cotangent of both terms.

    Returns:
        (v_x [B, C1, H, W], v_skip [B, C2, H, W] or None), channels_last in the dtype of x.

    Raises:
        TypeError, ValueError, RuntimeError, KernelUnavailable: as :func:`group_norm_silu`.
    """
    refuse_autograd("group_norm_silu_vjp", v, x, skip, row, weight, bias, add, more)
    code = RESAMPLE_CODES[one_of("resample", resample, RESAMPLE_CODES)]
    v, x = dense("v", v), dense("x", x)
    skip, add = None if skip is None else dense("skip", skip), None if add is None else dense("add", add)
    more = None if more is None else dense("more", more)
    v_x, v_skip = torch.empty_like(x), None if skip is None else torch.empty_like(skip)
    numbers = groups, code, activate
    _run_backward(v, x, skip, row, weight, bias, stats, *numbers, add, v_x, v_skip, more, float(scale))
    return v_x, v_skip
