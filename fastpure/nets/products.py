"""Products of 16-bit tensors on processors that have none.

Torch leaves convolutions and matrix products on the host to oneDNN, which has them in bfloat16 and float16 where the
processor has the instructions (from AVX-512 on). Elsewhere torch falls back to loops of its own that take ten to fifty
times as long as in float32: a 3x3 convolution of 32 images of 64 channels on 16 x 16 pixels 500 ms instead of 10, its
gradient 306 instead of 10, a product of 256 x 512 and 512 x 512 108 instead of 2 (``python -m bench.bench_products``;
a core of an AMD EPYC without AVX-512). There they are computed in float32 and rounded once, as the instructions do it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

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
    if torch.compiler.is_compiling():  # a compiler emulates them itself
        return False
    return x.dtype in _HALVES and x.device.type == "cpu" and not computes(x.dtype)


def product(operation: Callable[..., T], *arguments: Any, **settings: Any) -> T:
    """``operation(*arguments, **settings)``; where that would be emulated, computed in float32 and rounded once.

    The dtype is that of the first tensor. Differentiable as the operation is; ``out`` is written as by the operation.
    """
    first = next((one for one in (*arguments, *settings.values()) if isinstance(one, Tensor)), None)
    if first is None or not widens(first):
        return operation(*arguments, **settings)
    out = settings.pop("out", None)
    result = operation(*map(_wide, arguments), **{name: _wide(value) for name, value in settings.items()})
    return cast(T, _rounded(result, first.dtype) if out is None else out.copy_(result))


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALVES else value
    return type(value)(map(_wide, value)) if type(value) in (list, tuple) else value


def _rounded(result: Any, dtype: torch.dtype) -> Any:
    if isinstance(result, Tensor):
        return result.to(dtype) if result.dtype == torch.float32 else result
    return type(result)(_rounded(one, dtype) for one in result) if type(result) in (list, tuple) else result


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
