"""Counter-based noise by the compiled extension (host memory)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import extension
from ..extension import STATE_CODES, layout_code


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve this device type and dtype; None if it can."""
    loaded = extension.load()
    if loaded.module is None:
        return loaded.reason
    if device_type == "cuda":
        return extension.unavailable(dtype)
    if device_type != "cpu":
        return f"the extension serves host memory and CUDA devices, not {device_type}"
    if dtype not in STATE_CODES:
        return f"{dtype} is not supported (float32 and float64 are)"
    return None


def _fill(
    kind: int, seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    module = extension.load().module
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
        STATE_CODES[out.dtype],
        torch.get_num_threads(),
    )


def normal(
    seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    """Write normals into ``out``; arguments as in the schema of ``philox_normal``."""
    _fill(extension.NOISE_CODES["normal"], seed, ids, draws, step, stream, domain, out)


def uniform(
    seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    """Write uniforms into ``out``; arguments as in the schema of ``philox_uniform``."""
    _fill(extension.NOISE_CODES["uniform"], seed, ids, draws, step, stream, domain, out)
