"""What the GroupNorm+SiLU programs share: reading and writing tiles, group sums, the activation.

A tile is [P, K]: P pixels of one sample by K neighbouring channels. Activations are channels_last, so channels
are contiguous in memory. With a skip tensor the input is the concatenation [x, skip] along channels, which is
never made: a tile is read from, and written to, both tensors, each under its mask.

Names in capitals are compile-time constants: C1 and C2 channels of x and skip, C = C1 + C2, CG channels per
group, SIZE pixels of the input, W its width. ``b`` is the sample (int64, so that no offset overflows).
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from fastpure.kernels.triton_indexing import child

UP = tl.constexpr(1)
DOWN = tl.constexpr(2)
MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@triton.jit
def load_pair(x_ptr, skip_ptr, b, pixel, c, mask, C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr):
    """Tile of [x, skip] in float32, 0 where masked."""
    here = x_ptr + b * (SIZE * C1) + (pixel[:, None] * C1 + c[None, :])
    if C2 == 0:
        return tl.load(here, mask=mask, other=0.0).to(tl.float32)
    else:
        first = (c < C1)[None, :]
        x = tl.load(here, mask=mask & first, other=0.0)
        there = skip_ptr + b * (SIZE * C2) + (pixel[:, None] * C2 + (c[None, :] - C1))
        skip = tl.load(there, mask=mask & (c >= C1)[None, :], other=0.0)
        return tl.where(first, x, skip).to(tl.float32)


@triton.jit
def store_pair(
    x_ptr, skip_ptr, b, pixel, c, tile, mask, C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr
):
    """The opposite of ``load_pair``; rounds once."""
    rounded = tile.to(x_ptr.dtype.element_ty)
    here = x_ptr + b * (SIZE * C1) + (pixel[:, None] * C1 + c[None, :])
    if C2 == 0:
        tl.store(here, rounded, mask=mask)
    else:
        tl.store(here, rounded, mask=mask & (c < C1)[None, :])
        there = skip_ptr + b * (SIZE * C2) + (pixel[:, None] * C2 + (c[None, :] - C1))
        tl.store(there, rounded, mask=mask & (c >= C1)[None, :])


@triton.jit
def load_channels(ptr, b, c, ok, C: tl.constexpr, BATCHED: tl.constexpr):
    """One number per channel from [C] or (BATCHED) [B, C]; 0 where masked or where there is none."""
    if ptr is None:
        return tl.zeros(c.shape, tl.float32)
    else:
        offset = b * C if BATCHED else 0
        return tl.load(ptr + offset + c, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def load_per_group(ptr, b, c, ok, C: tl.constexpr, CG: tl.constexpr):
    """The two numbers [B, groups, 2] of every channel's group."""
    here = ptr + b * (2 * (C // CG)) + (c // CG) * 2
    return tl.load(here, mask=ok, other=0.0), tl.load(here + 1, mask=ok, other=0.0)


@triton.jit
def store_per_group(ptr, b, c, first, second, ok, C: tl.constexpr, CG: tl.constexpr):
    """The opposite, written by the first channel of each group."""
    here = ptr + b * (2 * (C // CG)) + (c // CG) * 2
    leads = ok & (c % CG == 0)
    tl.store(here, first, mask=leads)
    tl.store(here + 1, second, mask=leads)


@triton.jit
def group_sums(tile, P: tl.constexpr, K: tl.constexpr, CG: tl.constexpr):
    """[P, K], whose channels begin with a group -> [K]: for every channel the sum over its group and all pixels.

    Where groups are a power of two wide, channels are summed first: they lie in one thread, pixels do not.
    """
    if CG & (CG - 1) == 0:
        pixels = tl.sum(tl.reshape(tile, (P, K // CG, CG)), axis=2)
        sums = tl.sum(pixels, axis=0)
        return tl.reshape(tl.broadcast_to(sums[:, None], (K // CG, CG)), (K,))
    else:
        channels = tl.sum(tile, axis=0)
        group = tl.arange(0, K) // CG
        same = group[:, None] == group[None, :]
        return tl.sum(tl.where(same, channels[None, :], 0.0), axis=1)


@triton.jit
def inverse_root(value):
    """1 / sqrt(value): the processor's approximation and one Newton step."""
    root = tl.rsqrt(value)
    return root * tl.fma(-0.5 * value * root, root, 1.5)


@triton.jit
def silu(n, ACTIVATE: tl.constexpr, EXACT: tl.constexpr):
    """SiLU(n) = n / (1 + exp(-n)), or n."""
    if not ACTIVATE:
        return n
    elif EXACT:
        return n / (1.0 + tl.exp2(n * MINUS_LOG2_E))
    else:
        return n * logistic(n, EXACT)


@triton.jit
def logistic(n, EXACT: tl.constexpr):
    """1 / (1 + exp(-n)); not EXACT, to 3e-7 relative: half the instructions, and far below half precision."""
    d = 1.0 + tl.exp2(n * MINUS_LOG2_E)
    if EXACT:
        return 1.0 / d
    else:
        root = tl.rsqrt(d)  # 0 where d is infinite
        return root * root


@triton.jit
def normalise(tile, v, shift, rstd, weight, beta, ACTIVATE: tl.constexpr, EXACT: tl.constexpr):
    """(xhat, g): the normalised tile, and v carried back through the activation and the weight.

    SiLU'(n) = s (1 + n (1 - s)) with s the logistic function of n.
    """
    xhat = (tile - shift[None, :]) * rstd[None, :]
    g = v * weight[None, :]
    if ACTIVATE:
        n = tl.fma(xhat, weight[None, :], beta[None, :])
        s = logistic(n, EXACT)
        g = g * (s * tl.fma(n, 1.0 - s, 1.0))
    return xhat, g


@triton.jit
def store_activated(
    y_ptr, b, pixel, c, rest, mask, scale, beta,
    C: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr, ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Write SiLU(rest scale + beta) for the input's pixels ``pixel``, four times each for UP."""
    a = silu(tl.fma(rest, scale[None, :], beta[None, :]), ACTIVATE, EXACT).to(y_ptr.dtype.element_ty)
    if RESAMPLE == UP:
        for k in tl.static_range(4):
            here = y_ptr + b * (4 * SIZE * C) + (child(pixel, k, W)[:, None] * C + c[None, :])
            tl.store(here, a, mask=mask)
    else:
        tl.store(y_ptr + b * (SIZE * C) + (pixel[:, None] * C + c[None, :]), a, mask=mask)


@triton.jit
def store_mean_of_four(
    y_ptr, x_ptr, skip_ptr, b, pixel, c, mask, shift, scale, beta,
    C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr, ACTIVATE: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Write the 2x2 mean of SiLU((input - shift) scale + beta) for the output's pixels ``pixel``."""
    C: tl.constexpr = C1 + C2
    total = tl.zeros(mask.shape, tl.float32)
    for k in tl.static_range(4):
        tile = load_pair(x_ptr, skip_ptr, b, child(pixel, k, W // 2), c, mask, C1, C2, SIZE)
        total += silu(tl.fma(tile - shift[None, :], scale[None, :], beta[None, :]), ACTIVATE, EXACT)
    here = y_ptr + b * (SIZE // 4 * C) + (pixel[:, None] * C + c[None, :])
    tl.store(here, (total * 0.25).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_cotangent(
    v_ptr, b, pixel, c, mask,
    C: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr, RESAMPLE: tl.constexpr,
):  # fmt: skip
    """Cotangent of the activation at the input's pixels: the resampling transposed, while reading."""
    if RESAMPLE == UP:
        v = tl.zeros(mask.shape, tl.float32)
        for k in tl.static_range(4):
            here = v_ptr + b * (4 * SIZE * C) + (child(pixel, k, W)[:, None] * C + c[None, :])
            v += tl.load(here, mask=mask, other=0.0).to(tl.float32)
        return v
    elif RESAMPLE == DOWN:
        parent = (pixel // (2 * W)) * (W // 2) + pixel % W // 2
        here = v_ptr + b * (SIZE // 4 * C) + (parent[:, None] * C + c[None, :])
        return tl.load(here, mask=mask, other=0.0).to(tl.float32) * 0.25
    else:
        here = v_ptr + b * (SIZE * C) + (pixel[:, None] * C + c[None, :])
        return tl.load(here, mask=mask, other=0.0).to(tl.float32)
