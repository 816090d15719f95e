"""What a guidance is offered while it reads the purifier's input: the denoiser and noise, with exact gradients."""

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
