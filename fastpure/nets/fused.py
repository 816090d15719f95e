"""Residual blocks on the fused kernels: frozen weights, one pass per normalisation, nothing kept but inputs.

Where Triton serves the activations (a CUDA device), a block is

    h, s = enter(x, skip)       h = R(SiLU(GroupNorm([x, skip]))), s = shortcut([x, skip]); no concatenation is made
    h = conv(h)                 without its bias, which torch would add in a pass of its own
    h = norm_silu(h, shift)     shift = the convolution's bias + the time embedding
    h = conv(h)                 without its bias
    out = leave(s, h, biases)   (s + h + biases) / sqrt(2) in one pass

and backwards the shortcut's cotangent is added inside the normalisation's kernel. A backward pass under
``create_graph=True`` is rebuilt from the kernels' references, so second derivatives are right (only not cheap).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from fastpure.kernels import (
    OPS,
    group_norm_silu,
    group_norm_silu_vjp,
    resample,
    resample_vjp,
    residual_add,
    serves,
)

_PLAIN_NORM, _PLAIN_RESAMPLE = OPS["group_norm_silu"].reference, OPS["resample"].reference


def usable(x: Tensor, module: nn.Module, embedding: Tensor | None = None) -> bool:
    """Whether the fused kernels run for this input: Triton serves it and no weight of ``module`` is trained."""
    if not serves("group_norm_silu", "triton", x):
        return False
    if not torch.is_grad_enabled():
        return True
    trained = embedding is not None and embedding.requires_grad
    return not trained and not any(weight.requires_grad for weight in module.parameters())


def norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    shift: Tensor | None = None,
    activate: bool = True,
) -> Tensor:
    """SiLU(GroupNorm(x + shift)); x [B, C, H, W], shift [1 or B, C]. Keeps x and two numbers per group."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _NormSilu.apply(x, shift, weight, bias, groups, eps, activate)
    return group_norm_silu(x, weight, bias, groups, eps, row=shift, activate=activate)[0]


class _NormSilu(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        activate: bool,
    ) -> Tensor:
        y, stats = group_norm_silu(x, weight, bias, groups, eps, row=shift, activate=activate)
        ctx.save_for_backward(x, shift, weight, bias, stats)
        ctx.settings = (groups, eps, activate)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, weight, bias, stats = ctx.saved_tensors
        groups, eps, activate = ctx.settings
        if torch.is_grad_enabled():
            y, _ = _PLAIN_NORM(x, weight, bias, groups, eps, row=shift, activate=activate)
            return torch.autograd.grad(y, x, v, create_graph=True)[0], *[None] * 6
        v_x, _ = group_norm_silu_vjp(v, x, stats, weight, bias, groups, row=shift, activate=activate)
        return v_x, None, None, None, None, None, None


def enter(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    shortcut: Tensor | None,
    kind: str | None,
) -> tuple[Tensor, Tensor]:
    """(R(SiLU(GroupNorm([x, skip]))), shortcut of R([x, skip])) with R = ``kind``: "up", "down" or None.

    ``shortcut`` is the matrix [O, C] of a 1x1 convolution (its bias goes to ``leave``), or None for the input itself
    (then there is neither skip nor R).
    """
    differentiated = x.requires_grad or (skip is not None and skip.requires_grad)
    if torch.is_grad_enabled() and differentiated:
        return _Enter.apply(x, skip, weight, bias, groups, eps, shortcut, kind)
    y, _ = group_norm_silu(x, weight, bias, groups, eps, skip=skip, resample=kind)
    return y, _shortcut(x, skip, shortcut, kind)


class _Enter(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        shortcut: Tensor | None,
        kind: str | None,
    ) -> tuple[Tensor, Tensor]:
        y, stats = group_norm_silu(x, weight, bias, groups, eps, skip=skip, resample=kind)
        ctx.save_for_backward(x, skip, weight, bias, stats, shortcut)
        ctx.settings = (groups, eps, kind)
        return y, _shortcut(x, skip, shortcut, kind)

    @staticmethod
    def backward(ctx: Any, v_y: Tensor, v_s: Tensor) -> tuple[Tensor | None, ...]:
        x, skip, weight, bias, stats, shortcut = ctx.saved_tensors
        groups, eps, kind = ctx.settings
        if torch.is_grad_enabled():
            # Aliases: x was usually computed from skip, and that path must not be followed here.
            x, skip = x.view_as(x), None if skip is None else skip.view_as(skip)
            y, _ = _PLAIN_NORM(x, weight, bias, groups, eps, skip=skip, resample=kind)
            s = _shortcut(x, skip, shortcut, kind, _PLAIN_RESAMPLE)
            inputs = (x,) if skip is None else (x, skip)
            found = torch.autograd.grad((y, s), inputs, (v_y, v_s), create_graph=True)
            return found[0], found[1] if skip is not None else None, *[None] * 6
        add = _shortcut_vjp(v_s, shortcut, kind)
        v_x, v_skip = group_norm_silu_vjp(
            v_y, x, stats, weight, bias, groups, skip=skip, resample=kind, add=add
        )
        return v_x, v_skip, None, None, None, None, None, None


def _shortcut(
    x: Tensor,
    skip: Tensor | None,
    matrix: Tensor | None,
    kind: str | None,
    resize: Callable[[Tensor, str], Tensor] = resample,
) -> Tensor:
    if matrix is None:
        return x.view_as(x)
    if kind == "down":
        x = resize(x, "down")
    first = x.shape[1]
    pixels = torch.mm(_pixels(x), matrix[:, :first].t())
    if skip is not None:
        pixels = torch.addmm(pixels, _pixels(skip), matrix[:, first:].t())
    image = _image(pixels, x)
    return resize(image, "up") if kind == "up" else image  # a 1x1 convolution commutes with copying pixels


def _shortcut_vjp(v: Tensor, matrix: Tensor | None, kind: str | None) -> Tensor:
    """The cotangent of [x, skip], side by side, as ``group_norm_silu_vjp`` adds it."""
    if matrix is None:
        return v
    v = resample_vjp(v, "up") if kind == "up" else v
    v = _image(_pixels(v) @ matrix, v)
    return resample_vjp(v, "down") if kind == "down" else v


def _pixels(x: Tensor) -> Tensor:
    """[B, C, H, W] in channels_last -> [B H W, C]."""
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(0, 2)


def _image(pixels: Tensor, like: Tensor) -> Tensor:
    return pixels.view(like.shape[0], *like.shape[2:], -1).permute(0, 3, 1, 2)


def leave(shortcut: Tensor, h: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """(shortcut + h + bias) scale in one pass; keeps nothing."""
    if torch.is_grad_enabled() and (shortcut.requires_grad or h.requires_grad):
        return _Leave.apply(shortcut, h, bias, scale)
    return residual_add(shortcut, h, bias, scale)


class _Leave(Function):
    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, h: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.scale = scale
        return residual_add(shortcut, h, bias, scale)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        v = v * ctx.scale
        return v, v, None, None
