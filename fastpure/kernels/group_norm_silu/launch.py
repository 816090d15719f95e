"""GroupNorm+SiLU by the compiled extension, for float32 and bfloat16 in host memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..extension import DTYPE_CODES, call, unavailable_on_host
from ..pointwise.reference import residual_add

DTYPES = (torch.float32, torch.bfloat16)
"""Those it takes, activations and per-channel vectors alike; the arithmetic is float32."""

FORWARD_FIELDS, BACKWARD_FIELDS = 11, 13
"""How many of the schema's arguments the extension takes; those behind are seen to here."""


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve this device type and dtype; None if it can."""
    return unavailable_on_host(device_type, dtype, DTYPES)


def group_norm_silu(args: Any) -> None:
    """Write the activated tensor and the statistics; ``args`` as in the schema."""
    if args.plus is not None:
        args.total.copy_(residual_add(args.x, args.plus, args.row, args.scale))
        args = args._replace(x=args.total, row=None)
    _call("group_norm", args, FORWARD_FIELDS)


def group_norm_silu_vjp(args: Any) -> None:
    """Write the cotangents; ``args`` as in the schema."""
    _call("group_norm_vjp", args, BACKWARD_FIELDS)
    if args.more is not None:
        args.v_x.add_(args.more)
    if args.scale != 1.0:
        args.v_x.mul_(args.scale)


def _call(name: str, args: Any, fields: int) -> None:
    x, skip = args.x, args.skip
    if args.row is not None and skip is not None:  # the extension's row is one of [x, skip]
        args = args._replace(row=F.pad(args.row, (0, skip.shape[1])))
    args = _with_vectors_of_one_dtype(args)
    batch, channels, height, width = x.shape
    call(
        name,
        x,
        args[:fields],
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
