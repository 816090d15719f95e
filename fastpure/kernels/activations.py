"""Checks and conversions shared by the operations on a network's activations: [B, C, H, W] in channels_last."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastpure.errors import mistake

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LARGEST_SAMPLE = 2**29 - 1
"""Elements of one sample: offsets inside a sample, four times enlarged by doubling, are 32-bit in the kernels."""


def always(device_type: str, dtype: torch.dtype) -> None:
    """Availability of a reference: it runs wherever torch does."""


def dense(name: str, x: Tensor) -> Tensor:
    """``x`` in channels_last, copied only where it is not."""
    if not isinstance(x, Tensor):
        raise TypeError(mistake(name, "a tensor [B, C, H, W]", type(x).__name__))
    if x.dim() != 4:
        raise ValueError(mistake(name, "of shape [B, C, H, W]", list(x.shape)))
    return x.contiguous(memory_format=torch.channels_last)


def refuse_autograd(op: str, *inputs: Tensor | None) -> None:
    """Raise rather than cut a graph silently."""
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
        raise RuntimeError(
            mistake("inputs", f"free of gradient recording in `{op}`", "a tensor that requires a gradient")
            + ". Call it inside an autograd function or under torch.no_grad()"
        )


def carries_derivatives() -> bool:
    """Whether a transformation of ``torch.func`` or forward-mode differentiation is going on."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def check_activations(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is [B, C, H, W], floating, channels_last and small enough for 32-bit offsets."""
    if not isinstance(x, Tensor):
        raise TypeError(mistake(name, "a tensor [B, C, H, W]", type(x).__name__))
    if x.dtype not in DTYPES:
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
