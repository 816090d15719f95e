"""Counter-based noise by the compiled extension (host memory)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpure.kernels import _ext
from fastpure.kernels.layout import memory_format_of

DTYPES = {torch.float32: _ext.DTYPE_CODES["float32"], torch.float64: _ext.DTYPE_CODES["float64"]}


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve this device type and dtype; None if it can."""
    extension = _ext.load()
    if extension.module is None:
        return extension.reason
    if device_type != "cpu":
        return f"the extension was built for host memory only, not for {device_type}"
    if dtype not in DTYPES:
        return f"{dtype} is not supported (float32 and float64 are)"
    return None


def layout_code(x: Tensor) -> int:
    """The extension's code for the memory layout of a dense [B, C, H, W] tensor."""
    name = "channels_last" if memory_format_of(x) is torch.channels_last else "contiguous"
    return _ext.LAYOUT_CODES[name]


def _fill(
    kind: int, seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    module = _ext.load().module
    assert module is not None, "dispatch only comes here when the extension is loaded"
    batch, channels, height, width = out.shape
    module.noise(  # by position, in the order of csrc/module.cpp
        kind,
        seed.data_ptr(),
        ids.data_ptr(),
        draws.data_ptr(),
        step.data_ptr(),
        stream,
        domain,
        out.data_ptr(),
        batch,
        channels,
        height * width,
        layout_code(out),
        DTYPES[out.dtype],
        torch.get_num_threads(),
    )


def normal(
    seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    """Write normals into ``out``; arguments as in the schema of ``philox_normal``."""
    _fill(_ext.NOISE_CODES["normal"], seed, ids, draws, step, stream, domain, out)


def uniform(
    seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    """Write uniforms into ``out``; arguments as in the schema of ``philox_uniform``."""
    _fill(_ext.NOISE_CODES["uniform"], seed, ids, draws, step, stream, domain, out)
