"""Resampling and the end of a residual block by the compiled extension, for float32 and bfloat16 in host memory."""

from __future__ import annotations

from typing import Any

from ..extension import ACTIVATIONS, DTYPE_CODES, call, stride_of


def resample(args: Any) -> None:
    """Write ``out``; ``args`` as in the schema."""
    x = args.x
    batch, channels, height, width = (x if args.spread else args.out).shape
    call("resample", x, args, batch, channels, height, width, DTYPE_CODES[x.dtype])


def residual_add(args: Any) -> None:
    """Write ``out``; ``args`` as in the schema."""
    a, bias = args.a, args.bias
    if bias is not None and bias.dtype not in ACTIVATIONS:
        args = args._replace(bias=bias.float())
    batch, channels, height, width = a.shape
    call(
        "residual_add",
        a,
        args,
        batch,
        channels,
        height * width,
        stride_of(bias),
        0 if bias is None else DTYPE_CODES[args.bias.dtype],
        DTYPE_CODES[a.dtype],
    )
