"""GroupNorm+SiLU by the compiled extension, for float32 and bfloat16 in host memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..extension import DTYPE_CODES, call, unavailable_on_host

DTYPES = (torch.float32, torch.bfloat16)
"""Those it takes, activations and per-channel vectors alike; the arithmetic is float32."""


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve this device type and dtype; None if it can."""
    return unavailable_on_host(device_type, dtype, DTYPES)


def group_norm_silu(args: Any) -> None:
    """Write the activated tensor and the statistics; ``args`` as in the schema."""
    _call("group_norm", args)


def group_norm_silu_vjp(args: Any) -> None:
    """Write the cotangents; ``args`` as in the schema."""
    _call("group_norm_vjp", args)


def _call(name: str, args: Any) -> None:
    args = _with_vectors_of_one_dtype(args)
    x, skip = args.x, args.skip
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
        _stride(args.row),
        _stride(args.weight),
        _stride(args.bias),
        DTYPE_CODES[args.weight.dtype],
        DTYPE_CODES[x.dtype],
    )


def _with_vectors_of_one_dtype(args: Any) -> Any:
    """The same with row, weight and bias in one dtype that the extension reads: float32 where they differ."""
    row, weight, bias = args.row, args.weight, args.bias
    if weight.dtype in DTYPES and weight.dtype == bias.dtype and (row is None or row.dtype == weight.dtype):
        return args
    row = None if row is None else row.float()
    return args._replace(row=row, weight=weight.float(), bias=bias.float())


def _stride(vector: Tensor | None) -> int:
    """Elements from one sample's vector to the next: 0 where all samples share one."""
    if vector is None or vector.dim() == 1 or vector.shape[0] == 1:
        return 0
    return vector.shape[1]
