"""One GroupNorm+SiLU at a site of a network, by our kernels and by PyTorch's own, and how far both are from float64.

PyTorch's side is what autograd would run for frozen weights: group_norm and silu forward, silu_backward and
native_group_norm_backward on kept statistics backward, with cat, interpolate, avg_pool2d and additions where the
network has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.machine_code import Site
from fastpure.kernels import group_norm_silu, group_norm_silu_vjp, use_backend
from fastpure.kernels.group_norm_silu import impl_triton

EPS = 1e-6
RESAMPLE = {0: None, impl_triton.UP: "up", impl_triton.DOWN: "down"}


@dataclass(frozen=True)
class Buffers:
    """The tensors of one call at one site."""

    x: Tensor
    skip: Tensor | None
    weight: Tensor
    bias: Tensor
    v: Tensor
    add: Tensor
    groups: int
    resample: str | None

    @staticmethod
    def make(site: Site, dtype: torch.dtype, batch: int, device: str) -> Buffers:
        """Random activations in channels_last."""
        channels = site.channels + site.skip
        behind = {0: site.size, impl_triton.UP: 2 * site.size, impl_triton.DOWN: site.size // 2}[
            site.resample
        ]

        def image(width: int, size: int) -> Tensor:
            values = torch.randn(batch, width, size, size, device=device, dtype=dtype)
            return values.contiguous(memory_format=torch.channels_last)

        vectors = (torch.randn(channels, device=device, dtype=dtype) for _ in range(2))
        skip = image(site.skip, site.size) if site.skip else None
        ends = (image(channels, behind), image(channels, site.size))
        kind = RESAMPLE[site.resample]
        return Buffers(image(site.channels, site.size), skip, *vectors, *ends, site.groups, kind)

    def bytes_moved(self, direction: str) -> int:
        """Input and output once; backward also the cotangent and what is added."""
        size = self.x.element_size()
        inputs, outputs = self.add.numel(), self.v.numel()
        return size * (inputs + outputs if direction == "forward" else 3 * inputs + outputs)


def ours(buffers: Buffers, direction: str) -> Callable[[], Any]:
    """Our kernels."""
    options = {"skip": buffers.skip, "resample": buffers.resample}
    affine = (buffers.weight, buffers.bias, buffers.groups)
    if direction == "forward":
        return lambda: group_norm_silu(buffers.x, *affine, EPS, **options)
    _, stats = group_norm_silu(buffers.x, *affine, EPS, **options)
    return lambda: group_norm_silu_vjp(buffers.v, buffers.x, stats, *affine, add=buffers.add, **options)


def by_torch(buffers: Buffers, direction: str) -> Callable[[], Any]:
    """PyTorch's kernels, one after another."""
    weight, bias, groups = buffers.weight, buffers.bias, buffers.groups

    def norm() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = buffers.x if buffers.skip is None else torch.cat([buffers.x, buffers.skip], 1)
        # On CUDA torch's normalisation knows NCHW only; torch.group_norm copies its input likewise.
        x = x.contiguous() if x.is_cuda else x
        batch, channels, height, width = x.shape
        return x, *torch.native_group_norm(x, weight, bias, batch, channels, height * width, groups, EPS)

    def forward() -> Tensor:
        y = F.silu(norm()[1], inplace=True)
        if buffers.resample == "up":
            return F.interpolate(y, scale_factor=2, mode="nearest")
        return F.avg_pool2d(y, 2) if buffers.resample == "down" else y

    if direction == "forward":
        return forward
    x, normed, mean, rstd = norm()
    batch, channels, height, width = x.shape
    counts = (batch, channels, height * width, groups)

    def backward() -> tuple[Tensor, ...]:
        v = reference_transpose(buffers.v, buffers.resample)
        v = torch.ops.aten.silu_backward(v, normed)
        v = v.contiguous() if v.is_cuda else v
        v = torch.ops.aten.native_group_norm_backward(
            v, x, mean, rstd, weight, *counts, [True, False, False]
        )[0]
        v = v + buffers.add
        return (v,) if buffers.skip is None else v.split([buffers.x.shape[1], buffers.skip.shape[1]], 1)

    return backward


def reference_transpose(v: Tensor, resample: str | None) -> Tensor:
    """The transposed resampling by PyTorch's kernels."""
    if resample == "up":
        return F.avg_pool2d(v, 2, divisor_override=1)
    return F.interpolate(v * 0.25, scale_factor=2, mode="nearest") if resample == "down" else v


def error(site: Site, dtype: torch.dtype, direction: str, device: str) -> tuple[float, float]:
    """Relative L2 error (ours, PyTorch's) against float64 on two images."""
    buffers = Buffers.make(site, dtype, 2, device)
    wide = {f.name: getattr(buffers, f.name) for f in dataclasses.fields(buffers)}
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in wide.items()}
    exact = Buffers(**wide)
    with use_backend("reference"):
        wanted = _flat(ours(exact, direction)())
    errors = [_flat(call(buffers, direction)()) - wanted for call in (ours, by_torch)]
    return tuple(float(e.norm() / wanted.norm()) for e in errors)  # type: ignore[return-value]


def _flat(result: Any) -> Tensor:
    """y without the statistics, or all cotangents, as one float64 vector."""
    parts = result if isinstance(result, tuple) else (result,)
    images = [part for part in parts if part is not None and part.dim() == 4]
    return torch.cat([image.double().flatten() for image in images])
