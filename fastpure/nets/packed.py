"""Frozen weights in the form in which they are used: in oneDNN's memory layout, or several of them joined to one.

oneDNN, which convolves in float32 and bfloat16 on the CPU, computes on blocked weights. Given ordinary ones it reorders
them at every call, forward and backward, which for a few images costs more than it seems: 8 % of a gradient of the
CIFAR-10 network (B = 2, two threads; 9 % in bfloat16), most of it where small feature maps meet large weights. Frozen
weights can be reordered once; the arithmetic stays the same. The price is memory: two more copies of such weights, one
for each direction.

Packed over ordinary time, forward and backward, float32, one thread of an AMD EPYC with AVX-512 (``python -m
bench.bench_packing``; bfloat16 is alike):

    inputs, outputs, pixels, kernel     B = 1         B = 2         B = 8         B = 32
    32, 32, 32, 3                       0.95 0.92     0.98 0.93     0.94 0.94     1.05 0.98
    64, 64, 16, 3                       0.56 0.54     0.93 0.91     1.04 0.91     1.02 0.95
    128, 128, 32, 3                     0.97 0.90     1.03 0.90     1.01 0.95     1.00 0.99
    256, 256, 16, 3                     0.82 0.81     0.94 0.88     0.96 0.92     0.97 0.96
    512, 256, 8, 3                      0.56 0.62     0.73 0.64     0.87 0.86     0.95 0.88
    256, 256, 4, 3                      0.58 0.52     0.51 0.61     0.80 0.70     0.89 0.89
    128, 64, 16, 1                      0.93 0.79     0.70 0.62     0.48 0.45     0.90 0.93
    256, 128, 32, 1                     0.60 0.52     0.51 0.48     0.50 0.43     0.95 1.01

Packing pays or costs nothing, with one exception: 1x1 weights over very many pixels, where oneDNN's choice for the
packed form is at times ten times slower (256, 128, 32, 1 in bfloat16, B = 32: 9.7).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from .base import identity_of
from .products import computes

_ONEDNN = torch.ops.mkldnn

MOST_PIXELS_OF_A_MAP = 1 << 13
"""Pixels B * H * W above which 1x1 weights are left as they are."""

_HAS_OPERATORS = all(
    hasattr(_ONEDNN, name)
    for name in ("_reorder_convolution_weight", "_convolution_pointwise", "_convolution_pointwise_")
)


class PackedWeight:
    """Cache beside one weight: its packed forms, remade when the weight is another one or has changed.

    Whether it has changed is seen from its address, autograd's version counter and a sample of its values; the
    sample also catches writes through ``.data``, which no counter sees.
    """

    def __init__(self) -> None:
        self._forms: _Forms | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return PackedWeight()  # packed tensors can be neither copied nor pickled

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        return PackedWeight, ()

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``conv2d(x, weight, bias, padding=k // 2)`` for a frozen weight [O, C, k, k]."""
        packed = self._now(weight).forward(weight, x)
        return _convolve(x, packed, bias, weight.shape[2] // 2)

    def add_to(self, total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """``total`` plus that convolution, written over ``total``."""
        packed = self._now(weight).forward(weight, x)
        padding = [weight.shape[2] // 2] * 2
        rest: tuple[Any, ...] = (padding, [1, 1], [1, 1], 1, "add", 1.0, None, [], None)
        _ONEDNN._convolution_pointwise_.binary(total, x, packed, None, *rest)
        return total

    def pull_back(self, v: Tensor, weight: Tensor) -> Tensor:
        """Its vector-Jacobian product with respect to x: convolution with the mirrored, transposed weight."""
        packed = self._now(weight).transposed(weight, v)
        return _convolve(v, packed, None, weight.shape[2] // 2)

    def _now(self, weight: Tensor) -> _Forms:
        """The forms of the weight as it is: those of last time, or new ones."""
        forms = self._forms
        if forms is None or not forms.are_of(weight):
            self._forms = forms = _Forms(weight)
        return forms


@final
class _Forms:
    """The packed forms of one weight at one time. Threads may share them: they are replaced, never emptied."""

    def __init__(self, weight: Tensor) -> None:
        self._key = (*identity_of(weight), weight.shape)
        self._sample = weight.detach()[0].clone()
        self._forward: Tensor | None = None
        self._transposed: Tensor | None = None

    def are_of(self, weight: Tensor) -> bool:
        key = (*identity_of(weight), weight.shape)
        return key == self._key and torch.equal(weight.detach()[0], self._sample)

    def forward(self, weight: Tensor, x: Tensor) -> Tensor:
        packed = self._forward
        if packed is None:
            self._forward = packed = _pack(weight, x)
        return packed

    def transposed(self, weight: Tensor, v: Tensor) -> Tensor:
        packed = self._transposed
        if packed is None:
            self._transposed = packed = _pack(weight.flip(2, 3).transpose(0, 1), v)
        return packed


class PackedMap:
    """Cache beside one matrix [O, C] that is applied to every pixel: its packed forms, as a 1x1 convolution.

    oneDNN's convolutions are as fast as torch's products on some processors and twice as fast on others, and add up in
    place. The matrix may meet two images whose channels lie side by side, which are not concatenated for it.
    """

    def __init__(self) -> None:
        self._whole, self._first, self._second = PackedWeight(), PackedWeight(), PackedWeight()

    def apply(self, x: Tensor, skip: Tensor | None, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """matrix [x, skip] + bias at every pixel; x [B, C1, H, W], skip [B, C2, H, W] or None -> [B, O, H, W]."""
        weight = matrix[:, :, None, None]
        if skip is None:
            return self._whole.convolve(x, weight, bias)
        first = x.shape[1]
        return self._second.add_to(self._first.convolve(x, weight[:, :first], bias), skip, weight[:, first:])

    def pull_back(self, v: Tensor, matrix: Tensor) -> Tensor:
        """The cotangent of [x, skip], [B, C, H, W], from that of the result."""
        return self._whole.pull_back(v, matrix[:, :, None, None])


class Joined:
    """Cache of several weights side by side: one product with them instead of one with each.

    Whether one of them has changed is seen from addresses and version counters alone: looking at values would wait for
    the device.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._joined: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Joined:
        return Joined()  # a copy has weights of its own

    def __reduce__(self) -> tuple[type[Joined], tuple[()]]:
        return Joined, ()

    def get(self, *weights: Tensor) -> Tensor:
        """``torch.cat(weights, -1)``, made when one of the frozen weights is another one or has changed."""
        if any(weight.is_inference() for weight in weights):  # torch does not count their changes
            return torch.cat(weights, -1)
        key = tuple((*identity_of(weight), weight.dtype) for weight in weights)
        if self._joined is None or key != self._key:
            with torch.no_grad():
                self._key, self._joined = key, torch.cat(weights, -1)
        return self._joined


def can_pack(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether ``PackedWeight`` can take over, and gains: frozen weight on the CPU, stride 1, same-size output."""
    size = weight.shape[2]
    return size % 2 == 1 and (stride, padding) == (1, size // 2) and can_map(x, weight)


def can_map(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN should take the packed form of this frozen weight or matrix to these images."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # neither can write these operators down
        return False
    if not _HAS_OPERATORS or weight.requires_grad or weight.is_inference() or x.numel() == 0:
        return False
    is_map = weight.dim() == 2 or weight.shape[2] == 1
    if is_map and x.numel() // x.shape[1] > MOST_PIXELS_OF_A_MAP:
        return False
    if x.is_cuda or (x.device.type, weight.device.type) != ("cpu", "cpu") or x.dtype != weight.dtype:
        return False
    if x.dtype != torch.float32 and not (x.dtype == torch.bfloat16 and computes(x.dtype)):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _pack(weight: Tensor, x: Tensor) -> Tensor:
    padding = [weight.shape[2] // 2] * 2
    with torch.no_grad():
        return _ONEDNN._reorder_convolution_weight(
            weight.detach().contiguous(), padding, [1, 1], [1, 1], 1, list(x.shape)
        )


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    return _ONEDNN._convolution_pointwise(x, packed, bias, [padding] * 2, [1, 1], [1, 1], 1, "none", [], "")
