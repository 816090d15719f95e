"""U-Nets on the fused kernels: frozen weights, one pass per normalisation, nothing kept but inputs.

Where Triton or the host extension serves the activations (CUDA; float32 and bfloat16 in host memory) the blocks are

    h, s = enter(x, skip, ...)   h = R(SiLU(GroupNorm([x, skip]))), s = shortcut(R([x, skip])); no concatenation is made
    h = conv(h)                  without its bias, which torch would add in a pass of its own
    h = norm_silu(h, row)        row = the convolution's bias + the time embedding, added up once per table
    h = conv(h)                  without its bias
    Pending(s, h, bias, scale)   (s + h + bias) scale, which the next block's ``enter`` adds up while it reads

and backwards the cotangents of the shortcut, and of a later block that has ``x`` as its skip, are added inside the
normalisation's kernel. A backward pass under ``create_graph=True`` is rebuilt from the kernels' references, so second
derivatives are right (only not cheap).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels import (
    OPS,
    carries_derivatives,
    fused_on_host,
    group_norm_silu,
    group_norm_silu_of_sum,
    group_norm_silu_vjp,
    resample,
    resample_vjp,
    residual_add,
    serves,
)
from .base import HoistedNetwork, identity_of
from .frozen import records
from .packed import PackedMap, can_map
from .products import product

_PLAIN_NORM, _PLAIN_RESAMPLE = OPS["group_norm_silu"].reference, OPS["resample"].reference


def usable(x: Tensor, rows: Tensor, network: HoistedNetwork) -> bool:
    """Whether the fused blocks run for this input: kernels that serve it, no weight trained, and nobody looking.

    Not where dropout is on, a module has hooks (the parts of a block are not called one by one), a compiler traces (it
    fuses torch's operations itself), or derivatives are carried along with the values.
    """
    if torch.compiler.is_compiling() or network.training or carries_derivatives():
        return False
    if not (_on_a_device(x) or fused_on_host(x)):
        return False
    hooked, trained = network.watch.sees(network)
    return not hooked and not (torch.is_grad_enabled() and (trained or rows.requires_grad))


def _on_a_device(x: Tensor) -> bool:
    """Whether launching an operation is what costs; Triton may run elsewhere, in tests."""
    return x.is_cuda or serves("group_norm_silu", "triton", x)


class Pending:
    """The end of a block that nobody has added up yet: (shortcut + h + bias) scale.

    Attributes:
        terms: shortcut and h [B, C, H, W], bias [C] or [1 or B, C] or None, and scale; None once they are added up.
        total: the sum, once it is known.
    """

    __slots__ = ("terms", "total")

    def __init__(self, shortcut: Tensor, h: Tensor, bias: Tensor | None, scale: float) -> None:
        self.terms: tuple[Tensor, Tensor, Tensor | None, float] | None = (shortcut, h, bias, scale)
        self.total: Tensor | None = None

    def settle(self, total: Tensor) -> None:
        """Keep the sum and let go of its terms."""
        self.total, self.terms = total, None


Activation = Tensor | Pending


def added_up(x: Activation) -> Tensor:
    """The tensor itself; a pending sum is added up by a kernel of its own."""
    if isinstance(x, Tensor):
        return x
    if x.terms is not None:
        x.settle(_leave(*x.terms))
    assert x.total is not None
    return x.total


class Normalisation(NamedTuple):
    """What a normalisation is besides its input: weight and bias [C] or [1 or B, C], groups, eps, SiLU or not."""

    weight: Tensor
    bias: Tensor
    groups: int
    eps: float
    activate: bool = True


# ------------------------------------------------------------------------------- inside a residual block
def norm_silu(x: Tensor, norm: Normalisation, row: Tensor | None = None) -> Tensor:
    """SiLU(GroupNorm(x + row)); x [B, C, H, W], row [1 or B, C]. Keeps x and two numbers per group."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _NormSilu.apply(x, row, norm)
    return group_norm_silu(x, *norm[:4], row=row, activate=norm.activate)[0]


class _NormSilu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor | None, norm: Normalisation) -> Tensor:
        y, stats = group_norm_silu(x, *norm[:4], row=row, activate=norm.activate)
        ctx.save_for_backward(x, row, norm.weight, norm.bias, stats)
        ctx.settings = norm[2:]
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, row, weight, bias, stats = ctx.saved_tensors
        groups, eps, activate = ctx.settings
        if torch.is_grad_enabled():
            y, _ = _PLAIN_NORM(x, weight, bias, groups, eps, row=row, activate=activate)
            return torch.autograd.grad(y, x, v, create_graph=True)[0], None, None
        return (
            group_norm_silu_vjp(v, x, stats, weight, bias, groups, row=row, activate=activate)[0],
            None,
            None,
        )


# --------------------------------------------------------------------------- from one block into the next
class Shortcut(NamedTuple):
    """What goes past a block: the input, resampled ("up", "down" or None), times ``matrix`` [O, C] if there is one.

    The matrix is a 1x1 convolution's, whose bias is added with the block's; ``packed`` is its cache. Without a matrix
    there is no skip.
    """

    matrix: Tensor | None = None
    resample: str | None = None
    packed: PackedMap | None = None


PAST = Shortcut()
"""The input itself."""


def enter(
    x: Activation, skip: Tensor | None, norm: Normalisation, shortcut: Shortcut = PAST
) -> tuple[Tensor, Tensor]:
    """(R(SiLU(GroupNorm([x, skip]))), shortcut of [x, skip]); a pending x is added up on the way, for others too."""
    first, plus, row, scale = (
        x.terms if isinstance(x, Pending) and x.terms is not None else (added_up(x), None, None, 1.0)
    )
    inputs = (first, plus, skip)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        y, s, total = _Enter.apply(*inputs, row, scale, norm, shortcut)
    else:
        y, _, total = _normalised(*inputs, row, scale, norm, shortcut.resample)
        s = _shortcut(first if total is None else total, skip, shortcut)
    if isinstance(x, Pending) and total is not None:
        x.settle(total)
    return y, s


def _normalised(
    x: Tensor,
    plus: Tensor | None,
    skip: Tensor | None,
    row: Tensor | None,
    scale: float,
    norm: Normalisation,
    kind: str | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y, statistics, total or None)."""
    options: dict[str, Any] = {"skip": skip, "resample": kind, "activate": norm.activate}
    if plus is None:
        return *group_norm_silu(x, *norm[:4], **options), None
    return group_norm_silu_of_sum(x, plus, *norm[:4], row=row, scale=scale, **options)


class _Enter(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plus: Tensor | None,
        skip: Tensor | None,
        row: Tensor | None,
        scale: float,
        norm: Normalisation,
        shortcut: Shortcut,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        y, stats, total = _normalised(x, plus, skip, row, scale, norm, shortcut.resample)
        first = x if total is None else total
        ctx.save_for_backward(first, skip, norm.weight, norm.bias, stats, shortcut.matrix)
        ctx.settings = (scale, norm[2:], shortcut.resample, total is not None)
        ctx.packed = shortcut.packed
        ctx.set_materialize_grads(False)
        return y, _shortcut(first, skip, shortcut), total

    @staticmethod
    def backward(
        ctx: Any, v_y: Tensor | None, v_s: Tensor | None, v_total: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, skip, weight, bias, stats, matrix = ctx.saved_tensors
        scale, (groups, eps, activate), kind, is_sum = ctx.settings
        shortcut = Shortcut(matrix, kind, ctx.packed)
        if torch.is_grad_enabled() or v_y is None:
            norm = Normalisation(weight, bias, groups, eps, activate)
            v_x, v_skip = _enter_vjp_by_autograd(x, skip, norm, shortcut, v_y, v_s)
            if v_total is not None:
                v_x = v_total if v_x is None else v_x + v_total
            v_x = v_x * scale if is_sum and v_x is not None else v_x
        else:
            add = None if v_s is None else _shortcut_vjp(v_s, shortcut)
            v_x, v_skip = group_norm_silu_vjp(
                v_y,
                x,
                stats,
                weight,
                bias,
                groups,
                skip=skip,
                resample=kind,
                activate=activate,
                add=add,
                more=v_total,
                scale=scale,
            )
        return v_x, v_x if is_sum else None, v_skip, None, None, None, None


def _enter_vjp_by_autograd(
    x: Tensor,
    skip: Tensor | None,
    norm: Normalisation,
    shortcut: Shortcut,
    v_y: Tensor | None,
    v_s: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The cotangents of x and skip from those of y and s, differentiable; None where there are none."""
    create = torch.is_grad_enabled()

    def alias(tensor: Tensor) -> Tensor:
        # x was usually computed from skip, and that path must not be followed here.
        return tensor.view_as(tensor) if create else tensor.detach().requires_grad_()

    with torch.enable_grad():
        first, second = alias(x), None if skip is None else alias(skip)
        y, _ = _PLAIN_NORM(first, *norm[:4], skip=second, resample=shortcut.resample, activate=norm.activate)
        s = _shortcut(first, second, shortcut, _PLAIN_RESAMPLE)
        pairs = [(output, v) for output, v in ((y, v_y), (s, v_s)) if v is not None]
        if not pairs:
            return None, None
        outputs, cotangents = zip(*pairs, strict=True)
        inputs = (first,) if second is None else (first, second)
        found = torch.autograd.grad(outputs, inputs, cotangents, create_graph=create)
    return found[0], found[1] if skip is not None else None


def _shortcut(
    x: Tensor, skip: Tensor | None, shortcut: Shortcut, resize: Callable[[Tensor, str], Tensor] = resample
) -> Tensor:
    matrix, kind, packed = shortcut
    if matrix is None:
        return x.view_as(x) if kind is None else resize(x, kind)
    if kind == "down":
        x = resize(x, "down")
    image = _mapped(x, skip, matrix, None, packed)
    return resize(image, "up") if kind == "up" else image  # a 1x1 convolution commutes with copying pixels


def _shortcut_vjp(v: Tensor, shortcut: Shortcut) -> Tensor:
    """The cotangent of [x, skip], side by side, as ``group_norm_silu_vjp`` adds it."""
    matrix, kind, packed = shortcut
    if matrix is None:
        return v if kind is None else resample_vjp(v, kind)
    v = resample_vjp(v, "up") if kind == "up" else v
    v = _mapped_back(v, matrix, packed)
    return resample_vjp(v, "down") if kind == "down" else v


def _mapped(
    x: Tensor, skip: Tensor | None, matrix: Tensor, bias: Tensor | None, packed: PackedMap | None
) -> Tensor:
    """matrix [O, C] times every pixel of [x, skip], plus bias; recorded where an image asks for that."""
    if packed is not None and not records(x, skip) and can_map(x, matrix):
        return packed.apply(x, skip, matrix, bias)
    return product(_mapped_by_products, x, skip, matrix, bias)


def _mapped_by_products(x: Tensor, skip: Tensor | None, matrix: Tensor, bias: Tensor | None) -> Tensor:
    first = x.shape[1]
    part = matrix[:, :first].t()
    pixels = torch.mm(_pixels(x), part) if bias is None else torch.addmm(bias, _pixels(x), part)
    if skip is not None:
        pixels.addmm_(_pixels(skip), matrix[:, first:].t())
    return _image(pixels, x)


def _mapped_back(v: Tensor, matrix: Tensor, packed: PackedMap | None) -> Tensor:
    if packed is not None and not records(v) and can_map(v, matrix):
        return packed.pull_back(v, matrix)
    return _image(product(torch.mm, _pixels(v), matrix), v)


def _pixels(x: Tensor) -> Tensor:
    """[B, C, H, W] in channels_last -> [B H W, C]."""
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(0, 2)


def _image(pixels: Tensor, like: Tensor) -> Tensor:
    return pixels.view(like.shape[0], *like.shape[2:], -1).permute(0, 3, 1, 2)


def _leave(shortcut: Tensor, h: Tensor, bias: Tensor | None, scale: float) -> Tensor:
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
        v = v if ctx.scale == 1.0 else v * ctx.scale
        return v, v, None, None


# -------------------------------------------------------------------------------------------- attention
def mapped(x: Tensor, matrix: Tensor, bias: Tensor | None, packed: PackedMap) -> Tensor:
    """matrix [O, C] times every pixel of x [B, C, H, W], plus bias [O]; ``packed`` is the matrix's cache.

    Keeps nothing: the matrix is a weight, or was joined from some.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Mapped.apply(x, matrix, bias, packed)
    return _mapped(x, None, matrix, bias, packed)


class _Mapped(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor | None, packed: PackedMap) -> Tensor:
        # Not saved, as nobody needs to count it among the activations; so a change has to be noticed here.
        ctx.matrix, ctx.packed, ctx.made_of = matrix, packed, identity_of(matrix)
        return _mapped(x, None, matrix, bias, packed)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        if identity_of(ctx.matrix) != ctx.made_of:
            raise RuntimeError(
                "a weight was modified by an inplace operation between a pass and its gradient, which would be that of "
                "neither network. Call the network again after changing weights"
            )
        return _mapped_back(v, ctx.matrix, ctx.packed), None, None, None


def attention(tokens: Tensor, heads: int, legacy: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of ``heads`` heads for one product's q, k and v: [B, S, 3 C] -> [B, S, C].

    The 3 C channels are [heads, (q, k, v), D] if ``legacy``, else [(q, k, v), heads, D]. Keeps the tokens and computes
    the matrix again.
    """
    if torch.is_grad_enabled() and tokens.requires_grad:
        return _Attention.apply(tokens, heads, legacy)
    return _attended(tokens, heads, legacy)


def _heads(tokens: Tensor, heads: int, legacy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [B heads, S, D]: views for one head or one image, copies otherwise."""
    batch, pixels, _ = tokens.shape
    shape = (batch, pixels, heads, 3, -1) if legacy else (batch, pixels, 3, heads, -1)
    order = (3, 0, 2, 1, 4) if legacy else (2, 0, 3, 1, 4)
    q, k, v = (part.flatten(0, 1) for part in tokens.view(shape).permute(order).unbind())
    return q, k, v


def _matrix(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(_product(q, k.mT, q.shape[-1] ** -0.5), -1)


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """a b scale, which a product does on its way; the first argument is not looked at."""
    return product(torch.baddbmm, a.new_empty(1, 1, 1), a, b, beta=0.0, alpha=scale, out=out)


def _attended(tokens: Tensor, heads: int, legacy: bool) -> Tensor:
    q, k, v = _heads(tokens, heads, legacy)
    return _together(product(torch.bmm, _matrix(q, k), v), heads)


def _together(h: Tensor, heads: int) -> Tensor:
    """[B heads, S, D] -> [B, S, heads D]."""
    return h if heads == 1 else h.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, heads: int, legacy: bool) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.settings = (heads, legacy)
        return _attended(tokens, heads, legacy)

    @staticmethod
    def backward(ctx: Any, v_h: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        heads, legacy = ctx.settings
        if torch.is_grad_enabled():
            leaf = tokens.view_as(tokens)
            h = _attended(leaf, heads, legacy)
            return torch.autograd.grad(h, leaf, v_h, create_graph=True)[0], None, None
        return _attention_vjp(tokens, v_h, heads, legacy), None, None


def _attention_vjp(tokens: Tensor, v_h: Tensor, heads: int, legacy: bool) -> Tensor:
    q, k, v = _heads(tokens, heads, legacy)
    v_h = v_h if heads == 1 else v_h.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)
    matrix = _matrix(q, k)
    v_matrix = product(torch.bmm, v_h, v.mT)
    v_logits = torch.ops.aten._softmax_backward_data(v_matrix, matrix, -1, matrix.dtype)
    # The three parts of one tensor; on the host products write into parts image by image, which is slower than copying.
    if (heads == 1 or len(tokens) == 1) and _on_a_device(tokens):
        v_tokens = torch.empty_like(tokens)
        v_q, v_k, v_v = _heads(v_tokens, heads, legacy)
    else:
        v_tokens = None
        v_parts = q.new_empty(3, *q.shape)
        v_q, v_k, v_v = v_parts.unbind()
    scale = q.shape[-1] ** -0.5
    _product(v_logits, k, scale, out=v_q)
    _product(v_logits.mT, q, scale, out=v_k)
    product(torch.bmm, matrix.mT, v_h, out=v_v)
    if v_tokens is not None:
        return v_tokens
    order = (1, 3, 2, 0, 4) if legacy else (1, 3, 0, 2, 4)
    return v_parts.unflatten(1, (len(tokens), heads)).permute(order).flatten(2)
