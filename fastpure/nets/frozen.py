"""Autograd for frozen weights: keep for the backward pass only what the gradient w.r.t. the image needs.

An attack differentiates with respect to the image, never the weights. Then

* a convolution is linear in its input: its backward pass needs the weight and nothing else;
* GroupNorm followed by SiLU needs its input (and two numbers per group; the normalised tensor is cheap to
  recompute); that of a concatenation is kept as its parts, one of which another block keeps anyway;
* attention needs q, k and v (the attention matrix is recomputed);
* matrix products, resampling, residual additions and concatenations need nothing.

Plain autograd also keeps every convolution's input and SiLU's input: three times as much on DDPM++.

What the built-in networks call takes the same arguments in all situations: where a weight requires a gradient, or
the input does not, it is the plain torch operation. ``convolution``, ``batch_norm``, ``silu``, ``sigmoid`` and
``swish`` are for frozen weights only; ``constant_weights`` calls them in networks of other people. A backward pass
under ``create_graph=True`` is rebuilt from differentiable operations, so second derivatives are right (only not
always cheap).

GroupNorm and SiLU run as one kernel of the host extension where that serves the tensors (float32 and bfloat16,
channels_last), and as torch's operations elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils.weak import WeakIdKeyDictionary

from ..kernels import carries_derivatives, fused_on_host, group_norm_silu, group_norm_silu_vjp
from .packed import PackedWeight, can_pack
from .products import product, widens

_ATEN = torch.ops.aten


def saves_nothing_for(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether ``x`` needs a gradient and no weight does: the case in which this file saves memory."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and not any(weight is not None and weight.requires_grad for weight in weights)
    )


def records(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


# ---------------------------------------------------------------------------------------- convolution
class Geometry(NamedTuple):
    """All of a convolution but its tensors, in the order of ``torch.convolution``; one number per dimension."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: int = 0,
    packed: PackedWeight | None = None,
) -> Tensor:
    """``torch.nn.functional.conv2d`` that keeps only the weight when the weight is frozen.

    x [B, C, H, W], weight [O, C, k, k], bias [O] or None; returns [B, O, H', W'] in the dtype of x.
    ``packed`` is the weight's cache of packed forms, if the caller has one.
    """
    if packed is not None and not can_pack(x, weight, stride, padding):
        packed = None
    if saves_nothing_for(x, weight, bias):
        geometry = Geometry([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
        return _Convolve.apply(x, weight, bias, geometry, packed)
    if packed is not None and not records(x, bias):
        return packed.convolve(x, weight, bias)
    return product(F.conv2d, x, weight, bias, stride, padding)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``torch.convolution`` with frozen weights, in as many dimensions as x has; keeps only the weight."""
    return _Convolve.apply(x, weight, bias, geometry, None)


class _Convolve(Function):
    """x -> W x + b. Its derivative is ``_Pull``, whose derivative is W again.

    Torch's own second derivative of a convolution also computes that of the weight, which nobody asked for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        packed: PackedWeight | None,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.settings = (x.shape, x.stride(), geometry)
        ctx.packed = packed
        if packed is not None:
            return packed.convolve(x, weight, bias)
        return product(torch.convolution, x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            v_x = _Pull.apply(v, weight, *ctx.settings)
        elif ctx.packed is not None:
            v_x = ctx.packed.pull_back(v, weight)
        else:
            v_x = _pull(v, weight, *ctx.settings)
        return v_x, None, None, None, None


def _pull(
    v: Tensor, weight: Tensor, shape: torch.Size, strides: tuple[int, ...], geometry: Geometry
) -> Tensor:
    # Measured (bench_network --convolutions): within 8 % of convolving with a flipped copy of the weight, either way,
    # and needs no copy. The operator wants an input for its shape and layout only and never reads it; an expanded
    # scalar, as in torch.nn.grad.conv2d_input, would be written out in full (1x1: 1.09 ms, not 0.74).
    dtype = torch.float32 if widens(v) else v.dtype
    unread = torch.empty_strided(shape, strides, dtype=dtype, device=v.device)
    wanted = [True, False, False]
    return product(_ATEN.convolution_backward, v, unread, weight, None, *geometry, wanted)[0]


class _Pull(Function):
    """v -> W^T v."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, weight: Tensor, *settings: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = settings[-1]
        return _pull(v, weight, *settings)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Convolve.apply(w, weight, None, ctx.geometry, None), None, None, None, None


# ------------------------------------------------------------------------------------ GroupNorm + SiLU
def _by_kernel(x: Tensor) -> bool:
    """Whether the operations of ``kernels`` normalise x: the host's where they serve it, and all on a CUDA device."""
    if x.is_cuda:
        return not carries_derivatives() and not torch.compiler.is_compiling()
    return fused_on_host(x)


def norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """GroupNorm(x); x [B, C, H, W], weight and bias [C]. Keeps x."""
    if _by_kernel(x):
        if saves_nothing_for(x, weight, bias):
            return _FrozenNorm.apply(x, weight, bias, groups, eps, False)
        if not records(x, weight, bias):
            return group_norm_silu(x, weight, bias, groups, eps, activate=False)[0]
    return F.group_norm(x, groups, weight, bias, eps)


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """SiLU(GroupNorm(x)); x [B, C, H, W], weight and bias [C]. Keeps x."""
    if saves_nothing_for(x, weight, bias):
        return _FrozenNorm.apply(x, weight, bias, groups, eps, True)
    if records(x, weight, bias):
        return F.silu(F.group_norm(x, groups, weight, bias, eps))
    return _activated(x, weight, bias, groups, eps)[0]


def _activated(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor | None]:
    """SiLU(GroupNorm(x)) without recording, and its statistics if a kernel computed it that wants them again."""
    if _by_kernel(x):
        return group_norm_silu(x, weight, bias, groups, eps)
    return F.silu(F.group_norm(x, groups, weight, bias, eps), inplace=True), None


def _norm_silu_vjp(
    x: Tensor, v: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activate: bool = True
) -> Tensor:
    """v^T d SiLU(GroupNorm(x)) / dx; itself differentiable if a graph of the backward pass is being made."""
    if torch.is_grad_enabled():
        normed = F.group_norm(x, groups, weight, bias, eps)
        output = F.silu(normed) if activate else normed
        return torch.autograd.grad(output, x, v, create_graph=True)[0]
    # Torch's kernels take channels_last on the CPU only, elsewhere they read it as if it were not.
    x = x if x.device.type == "cpu" else x.contiguous()
    batch, channels, height, width = x.shape
    sizes = (batch, channels, height * width, groups)
    # Normalising again costs about what rebuilding scale and shift from kept statistics does.
    normed, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, eps)
    v_normed = _ATEN.silu_backward.grad_input(v, normed, grad_input=normed) if activate else v
    v_normed = v_normed if x.device.type == "cpu" else v_normed.contiguous()
    return _ATEN.native_group_norm_backward(v_normed, x, mean, rstd, weight, *sizes, [True, False, False])[0]


class _FrozenNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activate: bool
    ) -> Tensor:
        if activate:
            y, stats = _activated(x, weight, bias, groups, eps)
        else:
            y, stats = group_norm_silu(x, weight, bias, groups, eps, activate=False)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.settings = (groups, eps, activate)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        groups, eps, activate = ctx.settings
        if stats is None or torch.is_grad_enabled():
            v_x = _norm_silu_vjp(x, v, weight, bias, groups, eps, activate)
        else:
            v_x = group_norm_silu_vjp(v, x, stats, weight, bias, groups, activate=activate)[0]
        return v_x, None, None, None, None, None


def concat_norm_silu(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """(cat, SiLU(GroupNorm(cat))) with cat = [x, skip] along channels; keeps x and skip, not cat.

    ``skip`` is the output of an encoder block, which that block's successor keeps anyway: no extra memory.
    """
    if saves_nothing_for(x, weight, bias) or saves_nothing_for(skip, weight, bias):
        return _FrozenConcatNormSilu.apply(x, skip, weight, bias, groups, eps)
    both = torch.cat([x, skip], 1)
    if records(both, weight, bias):
        return both, F.silu(F.group_norm(both, groups, weight, bias, eps))
    return both, _activated(both, weight, bias, groups, eps)[0]


class _FrozenConcatNormSilu(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        both = torch.cat([x, skip], 1)
        y, stats = _activated(both, weight, bias, groups, eps)
        ctx.save_for_backward(x, skip, weight, bias, stats)
        ctx.settings = (groups, eps)
        return both, y

    @staticmethod
    def backward(ctx: Any, v_both: Tensor, v_y: Tensor) -> tuple[Tensor | None, ...]:
        x, skip, weight, bias, stats = ctx.saved_tensors
        groups, eps = ctx.settings
        if stats is None or torch.is_grad_enabled():
            both = torch.cat([x, skip], 1)
            v = _norm_silu_vjp(both, v_y, weight, bias, groups, eps) + v_both
            v_x, v_skip = v.split([x.shape[1], skip.shape[1]], 1)
        else:
            v_x, v_skip = group_norm_silu_vjp(v_y, x, stats, weight, bias, groups, skip=skip, add=v_both)
        return v_x, v_skip, None, None, None, None, None


# ----------------------------------------------------------------------- activations of what is cheap to make
class Recipe(NamedTuple):
    """How to make a tensor again: ``make(*parts)``, the parts being small or kept by something else anyway."""

    make: Callable[..., Tensor]
    parts: tuple[Tensor | None, ...]


def silu(z: Tensor, recipe: Recipe) -> Tensor:
    """SiLU(z) that keeps the recipe's parts instead of z."""
    return _Remade.apply(z, recipe, F.silu, _silu_vjp)


def sigmoid(z: Tensor, recipe: Recipe) -> Tensor:
    """sigmoid(z) that keeps the recipe's parts instead of its result."""
    return _Remade.apply(z, recipe, torch.sigmoid, _sigmoid_vjp)


def swish(z: Tensor, s: Tensor, recipe: Recipe) -> Tensor:
    """z s with s = sigmoid(z), that is SiLU written out; keeps the recipe's parts instead of both."""
    return _Remade.apply(
        z, recipe, lambda z: z * s, _silu_vjp
    )  # one pass; the product's own derivative takes four


class _Remade(Function):
    """z -> f(z), whose derivative makes z again."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        recipe: Recipe,
        f: Callable[[Tensor], Tensor],
        vjp: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        # The parts are no arguments: the gradient reaches them through z, and second derivatives through ``make``.
        ctx.save_for_backward(*recipe.parts)
        ctx.make, ctx.vjp = recipe.make, vjp
        return f(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        # Torch's own derivatives heed no autocast either, and z was made without.
        autocast = torch._C._is_any_autocast_enabled()
        with torch.autocast(v.device.type, enabled=False) if autocast else nullcontext():
            return ctx.vjp(ctx.make(*ctx.saved_tensors), v), None, None, None


def _silu_vjp(z: Tensor, v: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        s = torch.sigmoid(z)
        return v * (s * (1 + z * (1 - s)))
    return _ATEN.silu_backward.grad_input(v, z, grad_input=z)  # nobody else sees z


def _sigmoid_vjp(z: Tensor, v: Tensor) -> Tensor:
    return _ATEN.sigmoid_backward(v, torch.sigmoid(z))


# ----------------------------------------------------------------------- batch normalisation in evaluation mode
def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``torch.nn.functional.batch_norm`` by running statistics, with frozen weights; keeps one scale per channel.

    It is a scale and a shift, while torch's second derivative treats the statistics as if they were the image's.
    """
    scale = _scale(variance, weight, eps, x.dtype)
    return _Normalise.apply(x, scale, (mean, variance, weight, bias, False, 0.0, eps))


Identity = tuple[object, ...]
_SCALES: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Running variance -> (identity of what the scale of its normalisation was made of, scale)."""


def _scale(variance: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """The normalisation's derivative [1, C, 1, 1]; kept until a tensor it was made of changes."""
    identity = (eps, dtype, _identity(variance), _identity(weight))
    known = _SCALES.get(variance)
    if known is not None and known[0] == identity:
        return known[1]
    with torch.no_grad():
        scale = torch.rsqrt(variance + eps)
        scale = (scale if weight is None else scale * weight).to(dtype).view(1, -1, 1, 1)
    if None not in identity:
        _SCALES[variance] = (identity, scale)
    return scale


def _identity(tensor: Tensor | None) -> Identity | None:
    """What changes when the values do; None where torch does not count changes (inference tensors)."""
    if tensor is None:
        return ()
    if tensor.is_inference():
        return None
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor._version)


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


# -------------------------------------------------------------------------------------------- attention
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for q, k, v [..., S, D]; keeps q, k, v and recomputes the matrix."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Attention.apply(q, k, v)
    # The same operations with and without a gradient, so that a purified image has the same bits either way;
    # torch's fused attention is no faster at these sizes on the CPU (measured: 256 tokens of 256 channels).
    return product(torch.matmul, _attention_matrix(q, k), v)


def _attention_matrix(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(product(torch.matmul, q * q.shape[-1] ** -0.5, k.transpose(-1, -2)), -1)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return product(torch.matmul, _attention_matrix(q, k), v)

    @staticmethod
    def backward(ctx: Any, v_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        matrix = _attention_matrix(q, k)
        v_v = product(torch.matmul, matrix.transpose(-1, -2), v_out)
        v_matrix = product(torch.matmul, v_out, v.transpose(-1, -2))
        v_logits = matrix * (v_matrix - (matrix * v_matrix).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        return product(torch.matmul, v_logits, k), product(torch.matmul, v_logits.transpose(-1, -2), q), v_v


# ------------------------------------------------------------------------------------------- resampling
def mean_down(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels; [B, C, H, W] -> [B, C, H/2, W/2]. (torch's own pooling keeps its input.)"""
    if torch.is_grad_enabled() and x.requires_grad:
        return _MeanDown.apply(x)
    return F.avg_pool2d(x, 2)


class _MeanDown(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        v = v * 0.25
        if v.is_contiguous(memory_format=torch.channels_last):
            return F.interpolate(v, scale_factor=2, mode="nearest")
        # Measured: in ordinary layout torch's interpolation takes two to five times as long as copying.
        return v.repeat_interleave(2, -1).repeat_interleave(2, -2)
