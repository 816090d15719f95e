"""Any classifier with its weights as constants: what its first and second derivatives do not need is left out.

Guidance differentiates a classifier's gradient once more. Torch's own second derivatives of convolution and batch
normalisation are made for training: each convolution also computes the second derivative of its weight, which nobody
asked for, and evaluation-mode batch normalisation, a scale and a shift, is differentiated as if its statistics
depended on the image. Inside `ConstantWeights` both are what they are for an attack: linear maps of the image.
Convolutions then keep their weight only, normalisations their scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["ConstantWeights"]

Geometry = tuple[list[int], list[int], list[int], int]


@final
class ConstantWeights(TorchFunctionMode):
    """Context in which two-dimensional convolutions and evaluation-mode batch normalisations treat their weights as
    constants. Everything else, and a layer whose weight requires a gradient, is torch's own.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            call = _convolution(*args, **kwargs)
        elif func is F.batch_norm:
            call = _normalisation(*args, **kwargs)
        else:
            call = None
        return func(*args, **kwargs) if call is None else call()


def _constant(x: Tensor, *weights: Tensor | None) -> bool:
    differentiated = torch.is_grad_enabled() and x.requires_grad and x.dim() == 4
    return differentiated and not any(weight is not None and weight.requires_grad for weight in weights)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Callable[[], Tensor] | None:
    if isinstance(padding, str) or not _constant(input, weight, bias):
        return None
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    return lambda: _Convolve.apply(input, weight, bias, geometry)


def _normalisation(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Callable[[], Tensor] | None:
    if training or running_mean is None or running_var is None or not _constant(input, weight, bias):
        return None
    scale = _scale(running_var, weight, eps, input.dtype)
    return lambda: _Normalise.apply(
        input, scale, (running_mean, running_var, weight, bias, False, momentum, eps)
    )


Identity = tuple[object, ...]
_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Running variance -> (identity of what the scale of its normalisation was made of, scale)."""


def _scale(variance: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """The normalisation's derivative [1, C, 1, 1]; kept until a tensor it was made of changes."""
    identity = (eps, dtype, _identity(variance), _identity(weight))
    known = _KNOWN.get(variance)
    if known is not None and known[0] == identity:
        return known[1]
    with torch.no_grad():
        scale = torch.rsqrt(variance + eps)
        scale = (scale if weight is None else scale * weight).to(dtype).view(1, -1, 1, 1)
    if None not in identity:
        _KNOWN[variance] = (identity, scale)
    return scale


def _identity(tensor: Tensor | None) -> Identity | None:
    """What changes when the values do; None where torch does not count changes (inference tensors)."""
    if tensor is None:
        return ()
    if tensor.is_inference():
        return None
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor._version)


class _Convolve(Function):
    """x -> W x + b; its derivative is `_Pull`, whose derivative is W again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(weight)
        layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        ctx.settings = (x.shape, layout, geometry)
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Pull.apply(v, weight, *ctx.settings), None, None, None


class _Pull(Function):
    """v -> W^T v."""

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        weight: Tensor,
        shape: torch.Size,
        layout: torch.memory_format,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = geometry
        stride, padding, dilation, groups = geometry
        # The operator wants the input for its shape and layout only: it reads it for the weight's gradient alone.
        unread = torch.empty(shape, dtype=v.dtype, device=v.device, memory_format=layout)
        return torch.ops.aten.convolution_backward(
            v, unread, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )[0]

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Convolve.apply(w, weight, None, ctx.geometry), None, None, None, None


class _Normalise(Function):
    """x -> scale x + shift, by torch's own kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(scale)
        return F.batch_norm(x, *arguments)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return _Scale.apply(v, scale), None, None


class _Scale(Function):
    """v -> scale v."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return v * scale

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return _Scale.apply(w, scale), None


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
