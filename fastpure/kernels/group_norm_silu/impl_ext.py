"""GroupNorm+SiLU by the compiled extension, for float32 and bfloat16 in host memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import extension
from ..extension import address

CODES = {
    torch.float32: extension.DTYPE_CODES["float32"],
    torch.bfloat16: extension.DTYPE_CODES["bfloat16"],
}
"""Dtypes it takes, activations and per-channel vectors alike; the arithmetic is float32."""


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve this device type and dtype; None if it can."""
    loaded = extension.load()
    if loaded.module is None:
        return loaded.reason
    if device_type != "cpu":
        return f"the extension serves this operation in host memory only, not on {device_type}"
    if dtype not in CODES:
        return f"{dtype} is not supported (float32 and bfloat16 are)"
    return None


def group_norm_silu(
    x: Tensor,
    skip: Tensor | None,
    row: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    resample: int,
    activate: bool,
    y: Tensor,
    stats: Tensor,
) -> None:
    """Write the activated tensor and the statistics; arguments as in the schema of ``group_norm_silu``."""
    module = extension.load().module
    assert module is not None, "dispatch only comes here when the extension is loaded"
    row, weight, bias, vectors = _of_one_dtype(row, weight, bias)
    batch, channels, height, width = x.shape
    module.group_norm(  # by position, in the order of csrc/module.cpp
        x.data_ptr(),
        address(skip),
        address(row),
        _stride(row),
        weight.data_ptr(),
        _stride(weight),
        bias.data_ptr(),
        _stride(bias),
        eps,
        y.data_ptr(),
        stats.data_ptr(),
        batch,
        channels,
        0 if skip is None else skip.shape[1],
        height,
        width,
        groups,
        resample,
        activate,
        vectors,
        CODES[x.dtype],
        torch.get_num_threads(),
    )


def group_norm_silu_vjp(
    v: Tensor,
    x: Tensor,
    skip: Tensor | None,
    row: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    stats: Tensor,
    groups: int,
    resample: int,
    activate: bool,
    add: Tensor | None,
    v_x: Tensor,
    v_skip: Tensor | None,
) -> None:
    """Write the cotangents; arguments as in the schema of ``group_norm_silu_vjp``."""
    module = extension.load().module
    assert module is not None, "dispatch only comes here when the extension is loaded"
    row, weight, bias, vectors = _of_one_dtype(row, weight, bias)
    batch, channels, height, width = x.shape
    module.group_norm_vjp(  # likewise
        v.data_ptr(),
        x.data_ptr(),
        address(skip),
        address(row),
        _stride(row),
        weight.data_ptr(),
        _stride(weight),
        bias.data_ptr(),
        _stride(bias),
        stats.data_ptr(),
        address(add),
        v_x.data_ptr(),
        address(v_skip),
        batch,
        channels,
        0 if skip is None else skip.shape[1],
        height,
        width,
        groups,
        resample,
        activate,
        vectors,
        CODES[x.dtype],
        torch.get_num_threads(),
    )


def _of_one_dtype(
    row: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor | None, Tensor, Tensor, int]:
    """The per-channel vectors in one dtype the extension reads, and its code; float32 where they differ."""
    same = weight.dtype == bias.dtype and (row is None or row.dtype == weight.dtype)
    if not same or weight.dtype not in CODES:
        row, weight, bias = None if row is None else row.float(), weight.float(), bias.float()
    return row, weight, bias, CODES[weight.dtype]


def _stride(vector: Tensor | None) -> int:
    """Elements from one sample's vector to the next: 0 where all samples share one."""
    if vector is None or vector.dim() == 1 or vector.shape[0] == 1:
        return 0
    return vector.shape[1]
