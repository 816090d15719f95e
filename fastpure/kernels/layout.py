"""Checks and conversions shared by the operations: dense image batches and the tensors beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpure.errors import mistake
from fastpure.kernels import _ext
from fastpure.kernels.keys import BYTE_MAX

STATE_DTYPES = (torch.float32, torch.float64)
NARROW_DTYPES = (torch.bfloat16, torch.float16)
NARROW_IMAGES = ("noise_pred", "guidance")


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last if ``x`` [B, C, H, W] is dense in that order and not in the usual one."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def layout_code(x: Tensor) -> int:
    """The extension's code for the memory layout of a dense [B, C, H, W] tensor."""
    name = "channels_last" if memory_format_of(x) is torch.channels_last else "contiguous"
    return _ext.LAYOUT_CODES[name]


def may_be_narrow(name: str, dtype: torch.dtype, x: Tensor) -> bool:
    """Whether this input may stay bfloat16 or float16: what a network returned, beside a float32 state on CUDA."""
    return name in NARROW_IMAGES and dtype in NARROW_DTYPES and x.is_cuda and x.dtype == torch.float32


def check_state(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is an image batch [B, C, H, W] in a dtype the state may have."""
    if not isinstance(x, Tensor):
        raise TypeError(mistake(name, "a tensor [B, C, H, W]", type(x).__name__))
    if x.dtype not in STATE_DTYPES:
        raise TypeError(mistake(name, "float32 or float64", x.dtype))
    if x.dim() != 4:
        raise ValueError(mistake(name, "of shape [B, C, H, W]", list(x.shape)))


def check_images(x: Tensor, like: str, images: dict[str, Tensor | None]) -> None:
    """Raise unless ``x`` (called ``like``) is dense and every image has its shape, dtype, device and layout.

    The kernels see addresses only, so anything else would make them read the wrong memory.
    """
    fmt = memory_format_of(x)
    shape, dtype, device = x.shape, x.dtype, x.device
    _check_dense(like, x, fmt)
    for name, tensor in images.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(mistake(name, f"of the shape of `{like}`, {list(shape)}", list(tensor.shape)))
        if tensor.dtype != dtype and not may_be_narrow(name, tensor.dtype, x):
            raise TypeError(mistake(name, f"of the dtype of `{like}`, {dtype}", tensor.dtype))
        if tensor.device != device:
            raise ValueError(mistake(name, f"on the device of `{like}`, {device}", tensor.device))
        _check_dense(name, tensor, fmt)


def _check_dense(name: str, tensor: Tensor, fmt: torch.memory_format) -> None:
    if not tensor.is_contiguous(memory_format=fmt):
        raise ValueError(mistake(name, f"dense in {fmt}", f"strides {tensor.stride()}"))


def like_state(name: str, tensor: Tensor | None, x: Tensor, fmt: torch.memory_format) -> Tensor | None:
    """``tensor`` in the dtype and memory format of the state, copied only where it differs.

    A narrow dtype stays where the kernels take it (:func:`may_be_narrow`). Afterwards everything holds that
    :func:`check_images` checks.
    """
    if tensor is None:
        return None
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(mistake(name, "a floating-point tensor [B, C, H, W]", got))
    if tensor.shape != x.shape:
        raise ValueError(mistake(name, f"of the shape of the state, {list(x.shape)}", list(tensor.shape)))
    if tensor.device != x.device:
        raise ValueError(mistake(name, f"on the device of the state, {x.device}", tensor.device))
    if tensor.dtype != x.dtype and not may_be_narrow(name, tensor.dtype, x):
        tensor = tensor.to(x.dtype)
    return tensor if tensor.is_contiguous(memory_format=fmt) else tensor.contiguous(memory_format=fmt)


def check_step(step: Tensor, device: torch.device) -> None:
    """Raise unless ``step`` is int64 [1] on ``device``; its value is checked where it is read."""
    if not isinstance(step, Tensor) or step.dtype != torch.int64 or step.dim() != 1 or step.numel() != 1:
        got = f"{step.dtype} {list(step.shape)}" if isinstance(step, Tensor) else type(step).__name__
        raise TypeError(mistake("step", "an int64 tensor of shape [1]", got))
    if step.device != device:
        raise ValueError(mistake("step", f"on the device of the state, {device}", step.device))


def check_step_value(step: Tensor, rows: int) -> None:
    """Raise if ``step`` can be read and is not in [0, rows - 1]."""
    if is_readable(step) and not 0 <= (value := int(step)) < rows:
        raise ValueError(mistake("step", f"in [0, {rows - 1}]", value))


def check_byte(name: str, value: int) -> None:
    """Raise unless ``value`` fits the eight bits it has in the counter."""
    if not 0 <= value <= BYTE_MAX:
        raise ValueError(mistake(name, f"in [0, {BYTE_MAX}]", value))


def is_readable(tensor: Tensor) -> bool:
    """Whether a value can be looked at without waiting for a device (while tracing there is none at all)."""
    return type(tensor) is Tensor and tensor.device.type == "cpu"
