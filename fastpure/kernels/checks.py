"""What the operations check before a kernel may touch memory, and the conversions that spare it trouble.

First what all share, then the dense image batches of the sampler (float32 or float64, any layout) and the tensors
beside them, then a network's activations: [B, C, H, W] in channels_last.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import mistake
from .keys import BYTE_MAX

STATE_DTYPES = (torch.float32, torch.float64)
NARROW_DTYPES = (torch.bfloat16, torch.float16)
NARROW_IMAGES = ("noise_pred", "guidance")
ACTIVATION_DTYPES = (*STATE_DTYPES, *NARROW_DTYPES)
LARGEST_SAMPLE = 2**29 - 1
"""Elements of one sample: offsets inside a sample, four times enlarged by doubling, are 32-bit in the kernels."""


def always(device_type: str, dtype: torch.dtype) -> None:
    """Availability of a reference: it runs wherever torch does."""


def refuse_autograd(op: str, *inputs: object) -> None:
    """Raise rather than cut a graph silently."""
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
        raise RuntimeError(
            mistake("inputs", f"free of gradient recording in `{op}`", "a tensor that requires a gradient")
            + ". Call it inside an autograd function or under torch.no_grad()"
        )


def carries_derivatives() -> bool:
    """Whether a transformation of ``torch.func`` or forward-mode differentiation is going on."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def is_readable(tensor: Tensor) -> bool:
    """Whether a value can be looked at without waiting for a device (while tracing there is none at all)."""
    return type(tensor) is Tensor and tensor.device.type == "cpu"


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last if ``x`` [B, C, H, W] is dense in that order and not in the usual one."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


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


def dense(name: str, x: Tensor) -> Tensor:
    """``x`` in channels_last, copied only where it is not."""
    if not isinstance(x, Tensor):
        raise TypeError(mistake(name, "a tensor [B, C, H, W]", type(x).__name__))
    if x.dim() != 4:
        raise ValueError(mistake(name, "of shape [B, C, H, W]", list(x.shape)))
    return x.contiguous(memory_format=torch.channels_last)


def check_activations(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is [B, C, H, W], floating, channels_last and small enough for 32-bit offsets."""
    if not isinstance(x, Tensor):
        raise TypeError(mistake(name, "a tensor [B, C, H, W]", type(x).__name__))
    if x.dtype not in ACTIVATION_DTYPES:
        raise TypeError(mistake(name, "float32, float64, bfloat16 or float16", x.dtype))
    if x.dim() != 4:
        raise ValueError(mistake(name, "of shape [B, C, H, W]", list(x.shape)))
    if x.shape[1] * x.shape[2] * x.shape[3] > LARGEST_SAMPLE:
        raise ValueError(mistake(name, f"of at most {LARGEST_SAMPLE} elements per sample", list(x.shape)))
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(mistake(name, "dense in torch.channels_last", f"strides {x.stride()}"))


def check_like(name: str, tensor: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless ``tensor`` is a channels_last tensor of ``shape`` in the dtype and on the device of ``x``."""
    check_activations(name, tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(mistake(name, f"of shape {list(shape)}", list(tensor.shape)))
    if tensor.dtype != x.dtype:
        raise TypeError(mistake(name, f"of the dtype of the input, {x.dtype}", tensor.dtype))
    if tensor.device != x.device:
        raise ValueError(mistake(name, f"on the device of the input, {x.device}", tensor.device))


def check_channels(name: str, values: Tensor, x: Tensor, channels: int, *, batched: bool = True) -> None:
    """Raise unless ``values`` is a dense floating [channels], or (batched) [1 or B, channels], where ``x`` is."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(mistake(name, "a floating-point tensor", got))
    batch = x.shape[0]
    allowed = [(channels,), (1, channels), (batch, channels)][: 3 if batched else 1]
    if tuple(values.shape) not in allowed or not values.is_contiguous():
        expected = f"dense, of shape [{channels}]" + (f" or [1 or {batch}, {channels}]" if batched else "")
        raise ValueError(mistake(name, expected, f"{list(values.shape)} with strides {values.stride()}"))
    if values.device != x.device:
        raise ValueError(mistake(name, f"on the device of the input, {x.device}", values.device))
