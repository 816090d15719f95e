"""What the extension's CUDA half needs from torch: reasons, addresses, and the stream to launch on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastpure.kernels import _ext

STATE_CODES = {torch.float32: _ext.DTYPE_CODES["float32"], torch.float64: _ext.DTYPE_CODES["float64"]}
INPUT_CODES = STATE_CODES | {
    torch.bfloat16: _ext.DTYPE_CODES["bfloat16"],
    torch.float16: _ext.DTYPE_CODES["float16"],
}


def unavailable(dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve CUDA tensors of this (state) dtype; None if it can."""
    reason = _ext.reason_against_cuda()
    if reason is not None:
        return reason
    if dtype not in STATE_CODES:
        return f"{dtype} is not supported (float32 and float64 are)"
    return None


def by_device(
    leading: int, on_host: Callable[..., None], on_cuda: Callable[..., None]
) -> Callable[..., None]:
    """An implementation that goes by the device of its argument number ``leading``."""

    def run(*args: Any) -> None:
        (on_cuda if args[leading].is_cuda else on_host)(*args)

    return run


def address(tensor: Tensor | None) -> int:
    """Where the tensor begins in memory; 0 for one that is absent."""
    return 0 if tensor is None else tensor.data_ptr()


def input_code(tensor: Tensor | None) -> int:
    """The extension's code for the dtype of an input, which need not be that of the state."""
    return INPUT_CODES[torch.float32 if tensor is None else tensor.dtype]


def target(tensor: Tensor) -> tuple[int, int]:
    """(device index, address of the caller's stream there), to launch on."""
    index = tensor.device.index
    return index, torch.cuda.current_stream(index).cuda_stream


@functools.cache
def module_for(device_index: int) -> ModuleType:
    """The extension, with all its kernels loaded on that device (once; loading must not fall into a capture).

    Raises:
        RuntimeError: the device cannot run them; the message has CUDA's words.
    """
    module = _ext.load().module
    assert module is not None, "dispatch only comes here when the extension is loaded"
    module.cuda_preload(device_index)
    return module


def preload(device: torch.device | str | int = "cuda") -> None:
    """Load the extension's kernels on a CUDA device; call it before the first capture on that device.

    The first operation on a device does the same. Where the extension has no CUDA half nothing happens.

    Raises:
        RuntimeError: the device cannot run them; the message has CUDA's words.
    """
    if _ext.reason_against_cuda() is None:
        where = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        module_for(torch.cuda.current_device() if where.index is None else where.index)
