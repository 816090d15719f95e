"""What is read from the purifier's input before the first step, and what a guidance is offered for that.

All of it is computed and differentiated under the purifier's settings, whatever those of the caller are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..guidance import Opening
from ..guidance.base import range_scale
from .noise import NoiseSource
from .step import Process, differentiable_once, wants_gradient

Surroundings = Callable[[], AbstractContextManager[object]]


def opening(process: Process, noise: NoiseSource, environment: Surroundings, like: Tensor) -> Opening:
    """The opening of one purification of a state like ``like`` [B, C, H, W]; networks run in ``environment``."""
    first = next((k for k, row in enumerate(process.table.rows) if not row.forward), 0)

    def clean_image(x: Tensor, ratio: float) -> Tensor:
        if wants_gradient(x):
            return _CleanImage.apply(process, environment, ratio, x)
        with environment():
            return _asked(process, ratio, x)

    return Opening(clean_image, lambda: noise.guidance(first, like))


def read_under(
    environment: Surroundings, read: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor
) -> tuple[Tensor, ...]:
    """``read(x)`` of x [B, C, H, W], computed in ``environment`` forwards and backwards; differentiable once."""
    if wants_gradient(x):
        found: tuple[Tensor, ...] = _Read.apply(environment, read, x)
        return found
    with environment():
        return read(x)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, environment: Surroundings, read: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.arguments = (environment, read)
        ctx.save_for_backward(x)
        ctx.graph = _read(environment, read, x)
        # Copies of what is the input itself, or part of it: a function's outputs are tensors of their own.
        own = x.untyped_storage().data_ptr()
        told = [out.detach() for out in ctx.graph[1]]
        told = [out.clone() if out.untyped_storage().data_ptr() == own else out for out in told]
        constant = [t for t, out in zip(told, ctx.graph[1], strict=True) if not out.requires_grad]
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)
        return tuple(told)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *v: Tensor | None) -> tuple[Any, ...]:
        environment, read = ctx.arguments
        # The graph serves once; another backward pass through a retained outer graph records it again.
        leaf, outs = ctx.graph or _read(environment, read, ctx.saved_tensors[0])
        ctx.graph = None
        pairs = [(out, w) for out, w in zip(outs, v, strict=True) if w is not None and out.requires_grad]
        if not pairs:
            return None, None, None
        kept, cotangents = zip(*pairs, strict=True)
        with environment():
            return None, None, torch.autograd.grad(kept, leaf, cotangents, allow_unused=True)[0]


def _read(environment: Surroundings, read: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad(), environment():
        return leaf, tuple(read(leaf))


def _asked(process: Process, ratio: float, x: Tensor) -> Tensor:
    levels = torch.full((len(x),), ratio, dtype=torch.float64, device=x.device)
    return process.denoiser.clean_image(x, levels)


class _CleanImage(torch.autograd.Function):
    # A function of its own, so that the backward pass too runs in the call's environment and inside float16's range.
    @staticmethod
    def forward(ctx: Any, process: Process, environment: Surroundings, ratio: float, x: Tensor) -> Tensor:
        ctx.arguments = (process, environment, ratio)
        ctx.save_for_backward(x)
        ctx.graph = _recorded(process, environment, ratio, x)
        return ctx.graph[1].detach()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *v: Tensor) -> tuple[Any, ...]:
        process, environment, ratio = ctx.arguments
        process.require_current()
        # The graph serves once; another backward pass through a retained outer graph records it again.
        leaf, out = ctx.graph or _recorded(process, environment, ratio, ctx.saved_tensors[0])
        ctx.graph = None
        scale = range_scale(v[0]) if process.denoiser.dtype == torch.float16 else 1.0
        with environment():
            return None, None, None, torch.autograd.grad(out, leaf, v[0] * scale)[0] / scale


def _recorded(process: Process, environment: Surroundings, ratio: float, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad(), environment():
        return leaf, _asked(process, ratio, leaf)
