"""The row update and its transpose by the compiled extension, in host memory and on CUDA devices.

The state is float32 or float64. Beside a float32 state on a CUDA device the network output and the guidance gradient
may be bfloat16 or float16 and are widened as they are read. Steps outside the table raise ValueError on the host; on a
device they cannot be reported without waiting for it, and make every result NaN.
"""

from __future__ import annotations

from typing import Any

from ..extension import STATE_CODES, call, input_code, layout_code


def affine_row(args: Any) -> None:
    """Write the updated state (and register); ``args`` as in the schema."""
    x = args.x
    batch, channels, height, width = x.shape
    call(
        "affine_row",
        x,
        args,
        args.table.shape[0],
        batch,
        channels,
        height * width,
        layout_code(x),
        STATE_CODES[x.dtype],
        input_code(args.noise_pred),
        input_code(args.guidance),
    )


def affine_row_vjp(args: Any) -> None:
    """Write the cotangents; ``args`` as in the schema."""
    v = args.v
    rows, state = args.table.shape[0], STATE_CODES[v.dtype]
    call("affine_row_vjp", v, args, rows, v.numel(), state, input_code(args.noise_pred))
