"""Products of 16-bit tensors on processors that have none.

Torch leaves convolutions and matrix products on the host to oneDNN, which has them in bfloat16 and float16 where the
processor has the instructions (from AVX-512 on). Elsewhere torch falls back to loops of its own, which take many times
as long as in float32: 3x3 convolutions of 32 images 28 to 57 times forward and 5 to 17 times backward, matrix products
41 times (``python -m bench.bench_products``; a core of an AMD EPYC without AVX-512). There products are computed in
float32 and rounded once, which is what the instructions do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

_HALVES = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@functools.cache
def computes(dtype: torch.dtype) -> bool:
    """Whether products in ``dtype`` are the processor's own."""
    name = _HALVES.get(dtype)
    if name is None:
        return True
    asked = getattr(torch.ops.mkldnn, name, None) if torch.backends.mkldnn.is_available() else None
    return asked is not None and bool(asked())


def widens(x: Tensor) -> bool:
    """Whether products of ``x`` are computed in float32, because those in its dtype would be emulated slowly."""
    if x.dtype not in _HALVES or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False  # a compiler sees the network as it is written
    return not computes(x.dtype)


def product(operation: Callable[..., T], *arguments: Any, **settings: Any) -> T:
    """``operation(*arguments, **settings)``; where that would be emulated, computed in float32 and rounded once.

    The dtype is that of the first tensor. Differentiable as the operation is; ``out`` is written as by the operation.
    """
    if torch.compiler.is_compiling():  # which reads less than Python does
        return operation(*arguments, **settings)
    first = next((one for one in (*arguments, *settings.values()) if isinstance(one, Tensor)), None)
    if first is None or not widens(first):
        return operation(*arguments, **settings)
    out = settings.pop("out", None)
    result = operation(*_changed(arguments, _wide), **{k: _changed(v, _wide) for k, v in settings.items()})
    return cast(
        T, _changed(result, _rounding(torch.float32, first.dtype)) if out is None else out.copy_(result)
    )


def _rounding(before: torch.dtype, after: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(after) if x.dtype == before else x


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALVES else x


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tensor changed, those of a list or tuple too."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_changed(one, change) for one in value) if type(value) in (list, tuple) else value


FUNCTIONS = frozenset(
    (
        *(torch.conv1d, torch.conv2d, torch.conv3d),
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm),
        *(torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.einsum, torch.tensordot),
        *(F.linear, F.bilinear, F.scaled_dot_product_attention, F.multi_head_attention_forward),
    )
)
"""Torch's products, as networks of other people call them."""


def autocast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Context for the inside of ``torch.autocast``, whose products on the host would be as slow; else of no effect."""
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
    return nullcontext() if device.type != "cpu" or computes(dtype) else _AutocastProducts(dtype)


@final
class _AutocastProducts(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._round = _rounding(torch.float32, dtype)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in FUNCTIONS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            arguments = _changed(args, self._round)
            return product(func, *arguments, **{k: _changed(v, self._round) for k, v in kwargs.items()})
