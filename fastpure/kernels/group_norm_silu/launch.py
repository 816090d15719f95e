"""GroupNorm+SiLU by the compiled extension, for float32 and bfloat16 in host memory."""

from __future__ import annotations

from typing import Any

from ..extension import ACTIVATIONS, DTYPE_CODES, call, stride_of


def group_norm_silu(args: Any) -> None:
    """Write the activated tensor, the statistics and the sum if there is one; ``args`` as in the schema."""
    _call("group_norm", args)


def group_norm_silu_vjp(args: Any) -> None:
    """Write the cotangents; ``args`` as in the schema."""
    _call("group_norm_vjp", args)


def _call(name: str, args: Any) -> None:
    x, skip = args.x, args.skip
    args = _with_vectors_of_one_dtype(args)
    batch, channels, height, width = x.shape
    call(
        name,
        x,
        args,
        batch,
        channels,
        0 if skip is None else skip.shape[1],
        height,
        width,
        stride_of(args.row),
        stride_of(args.weight),
        stride_of(args.bias),
        DTYPE_CODES[args.weight.dtype],
        DTYPE_CODES[x.dtype],
    )


def _with_vectors_of_one_dtype(args: Any) -> Any:
    """The same with row, weight and bias in one dtype that the extension reads: float32 where they differ."""
    row, weight, bias = args.row, args.weight, args.bias
    if (
        weight.dtype in ACTIVATIONS
        and weight.dtype == bias.dtype
        and (row is None or row.dtype == weight.dtype)
    ):
        return args
    row = None if row is None else row.float()
    return args._replace(row=row, weight=weight.float(), bias=bias.float())
