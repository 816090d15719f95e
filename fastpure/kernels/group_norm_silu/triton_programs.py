"""The Triton programs of GroupNorm+SiLU: tiles first, then the fused kernels, then those for large images.

A tile is [P, K]: P pixels of one sample by K neighbouring channels. Activations are channels_last, so channels
are contiguous in memory. With a skip tensor the input is the concatenation [x, skip] along channels, which is
never made: a tile is read from, and written to, both tensors, each under its mask.

Fused, a program holds all pixels of a few whole groups in registers and passes over memory once. Statistics are
two-pass: the mean first, then the mean square of what is left. Sums run over a tile whose shape is fixed by the
image and the channels, never by the batch, in the compiler's fixed tree order: the same sample gives the same
bits in any batch. Where the first input is a sum that nobody has added up yet, it is added up while it is read,
rounded as if it had been written before, and written for others to use.

Where the groups do not fit one program, a first kernel leaves two numbers per tile of pixels and channel, a small
one combines them per group in a fixed order (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
for computing sample variances", 1979, in its many-part form: mean of the means, then squares about it), a third
applies the result. Nothing is accumulated across programs, here or there.

Names in capitals are compile-time constants: C1 and C2 channels of x and skip, C = C1 + C2, CG channels per
group, SIZE pixels of the input, W its width. ``b`` is the sample (int64, so that no offset overflows).
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from ..pointwise.triton_programs import child, tile_of_pixels

UP = tl.constexpr(1)
DOWN = tl.constexpr(2)
MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@triton.jit
def load_pair(x_ptr, skip_ptr, b, pixel, c, mask, C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr):
    """Tile of [x, skip] in float32, 0 where masked."""
    return load_sum(x_ptr, None, skip_ptr, None, b, pixel, c, mask, C1, C2, SIZE, 1.0)


@triton.jit
def load_sum(
    x_ptr, plus_ptr, skip_ptr, row, b, pixel, c, mask,
    C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Tile of [(x + plus + row) SCALE, skip] in float32, the sum rounded to the dtype of x; 0 where masked.

    Without plus it is [x, skip]: neither row nor SCALE takes part.
    """
    place = b * (SIZE * C1) + (pixel[:, None] * C1 + c[None, :])
    inside = mask if C2 == 0 else mask & (c < C1)[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    if plus_ptr is not None:
        total = (
            x.to(tl.float32) + tl.load(plus_ptr + place, mask=inside, other=0.0).to(tl.float32) + row[None, :]
        )
        x = tl.where(inside, total * SCALE, 0.0).to(x_ptr.dtype.element_ty)
    if C2 == 0:
        return x.to(tl.float32)
    else:
        there = skip_ptr + b * (SIZE * C2) + (pixel[:, None] * C2 + (c[None, :] - C1))
        skip = tl.load(there, mask=mask & (c >= C1)[None, :], other=0.0)
        return tl.where((c < C1)[None, :], x, skip).to(tl.float32)


@triton.jit
def store_first(ptr, b, pixel, c, tile, mask, C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr):
    """The part of a tile of [x, skip] that belongs to x."""
    here = ptr + b * (SIZE * C1) + (pixel[:, None] * C1 + c[None, :])
    inside = mask if C2 == 0 else mask & (c < C1)[None, :]
    tl.store(here, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def store_pair(
    x_ptr, skip_ptr, b, pixel, c, tile, mask,
    C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """The opposite of ``load_pair``, with x times SCALE; rounds once."""
    store_first(x_ptr, b, pixel, c, tile * SCALE, mask, C1, C2, SIZE)
    if C2 != 0:
        there = skip_ptr + b * (SIZE * C2) + (pixel[:, None] * C2 + (c[None, :] - C1))
        tl.store(there, tile.to(x_ptr.dtype.element_ty), mask=mask & (c >= C1)[None, :])


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
    y_ptr, x_ptr, plus_ptr, skip_ptr, row, b, pixel, c, mask, shift, scale, beta,
    C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr, SCALE: tl.constexpr,
    ACTIVATE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write the 2x2 mean of SiLU((input - shift) scale + beta) for the output's pixels ``pixel``."""
    C: tl.constexpr = C1 + C2
    total = tl.zeros(mask.shape, tl.float32)
    for k in tl.static_range(4):
        fine = child(pixel, k, W // 2)
        tile = load_sum(x_ptr, plus_ptr, skip_ptr, row, b, fine, c, mask, C1, C2, SIZE, SCALE)
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


@triton.jit
def store_cotangent(
    v_x_ptr, v_skip_ptr, add_ptr, more_ptr, b, pixel, c, v_in, mask,
    C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """[v_x, v_skip] = v_in + add, and v_x = (v_x + more) SCALE."""
    if more_ptr is not None:
        here = more_ptr + b * (SIZE * C1) + (pixel[:, None] * C1 + c[None, :])
        v_in += tl.load(here, mask=mask & (c < C1)[None, :], other=0.0).to(tl.float32)
    if add_ptr is not None:
        v_in += load_pair(add_ptr, add_ptr, b, pixel, c, mask, C1 + C2, 0, SIZE)
    store_pair(v_x_ptr, v_skip_ptr, b, pixel, c, v_in, mask, C1, C2, SIZE, SCALE)


@triton.jit
def block_of_groups(C: tl.constexpr, CG: tl.constexpr, NG: tl.constexpr, K: tl.constexpr):
    """(sample, channels [K], which of them count) of a program that owns NG groups of one sample."""
    GROUPS: tl.constexpr = C // CG
    BLOCKS: tl.constexpr = (GROUPS + NG - 1) // NG
    b = (tl.program_id(0) // BLOCKS).to(tl.int64)
    local = tl.arange(0, K)
    c = (tl.program_id(0) % BLOCKS) * (NG * CG) + local
    ok = local < NG * CG
    if GROUPS % NG != 0:
        ok = ok & (c < C)
    return b, c, ok


@triton.jit
def forward_fused(
    x_ptr, plus_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, y_ptr, stats_ptr, total_ptr,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    EPS: tl.constexpr, SCALE: tl.constexpr, ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr,
    NG: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """y = R(SiLU(GroupNorm([x + row, skip]))); stats = (mean, 1/std) of every sample and group.

    With plus: total = (x + plus + row) SCALE and y of [total, skip].
    """
    C: tl.constexpr = C1 + C2
    b, c, ok = block_of_groups(C, CG, NG, K)
    pixel = tl.arange(0, P)
    mask = (pixel < SIZE)[:, None] & ok[None, :]
    row = load_channels(row_ptr, b, c, ok & (c < C1), C1, ROWS)
    tile = load_sum(x_ptr, plus_ptr, skip_ptr, row, b, pixel, c, mask, C1, C2, SIZE, SCALE)
    weight = load_channels(weight_ptr, b, c, ok, C, WEIGHTS)
    beta = load_channels(bias_ptr, b, c, ok, C, BIASES)

    mean = group_sums(tile, P, K, CG) * (1.0 / (SIZE * CG))
    shift = mean
    if total_ptr is not None:
        store_first(total_ptr, b, pixel, c, tile, mask, C1, C2, SIZE)
    elif row_ptr is not None:  # it only moves a channel's mean: (x + row) - mean = x - (mean - row)
        mean += group_sums(row[None, :], 1, K, CG) * (1.0 / CG)
        shift = mean - row
    rest = tl.where(mask, tile - shift[None, :], 0.0)
    variance = group_sums(rest * rest, P, K, CG) * (1.0 / (SIZE * CG))
    rstd = inverse_root(variance + EPS)
    store_per_group(stats_ptr, b, c, mean, rstd, ok, C, CG)
    scale = rstd * weight
    if RESAMPLE == DOWN:  # the second reading finds the tile in the cache
        coarse = tl.arange(0, P // 4)
        inside = (coarse < SIZE // 4)[:, None] & ok[None, :]
        store_mean_of_four(
            y_ptr, x_ptr, plus_ptr, skip_ptr, row, b, coarse, c, inside, shift, scale, beta,
            C1, C2, SIZE, W, SCALE, ACTIVATE, EXACT,
        )  # fmt: skip
    else:
        store_activated(y_ptr, b, pixel, c, rest, mask, scale, beta, C, SIZE, W, ACTIVATE, RESAMPLE, EXACT)


@triton.jit
def backward_fused(
    v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, add_ptr, more_ptr, v_x_ptr, v_skip_ptr,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    SCALE: tl.constexpr, ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr,
    NG: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """[v_x, v_skip] = rstd (g - mean(g) - xhat mean(g xhat)) + add with g = weight SiLU' R^T v.

    And v_x = (v_x + more) SCALE.
    """
    C: tl.constexpr = C1 + C2
    b, c, ok = block_of_groups(C, CG, NG, K)
    pixel = tl.arange(0, P)
    mask = (pixel < SIZE)[:, None] & ok[None, :]
    tile = load_pair(x_ptr, skip_ptr, b, pixel, c, mask, C1, C2, SIZE)
    v = load_cotangent(v_ptr, b, pixel, c, mask, C, SIZE, W, RESAMPLE)
    row = load_channels(row_ptr, b, c, ok & (c < C1), C1, ROWS)
    weight = load_channels(weight_ptr, b, c, ok, C, WEIGHTS)
    beta = load_channels(bias_ptr, b, c, ok, C, BIASES)
    mean, rstd = load_per_group(stats_ptr, b, c, ok, C, CG)

    xhat, g = normalise(tile, v, mean - row, rstd, weight, beta, ACTIVATE, EXACT)  # g is 0 where masked
    mean_g = group_sums(g, P, K, CG) * (1.0 / (SIZE * CG))
    mean_gx = group_sums(g * xhat, P, K, CG) * (1.0 / (SIZE * CG))
    v_in = tl.fma(xhat, -mean_gx[None, :], g - mean_g[None, :]) * rstd[None, :]
    store_cotangent(v_x_ptr, v_skip_ptr, add_ptr, more_ptr, b, pixel, c, v_in, mask, C1, C2, SIZE, SCALE)


@triton.jit
def store_partial(ptr, b, t, c, first, second, C: tl.constexpr, TILES: tl.constexpr):
    """Two numbers per channel into [B, TILES, 2, C]."""
    here = ptr + (b * TILES + t) * (2 * C) + c
    tl.store(here, first, mask=c < C)
    tl.store(here + C, second, mask=c < C)


@triton.jit
def forward_partial(
    x_ptr, plus_ptr, skip_ptr, row_ptr, total_ptr, partial_ptr,
    C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr, SCALE: tl.constexpr, ROWS: tl.constexpr,
    P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Per tile and channel of [x, skip]: the mean, and the sum of squares about it; with plus, of [total, skip]."""
    b, t, pixel, c, mask = tile_of_pixels(C1 + C2, SIZE, P, K)
    row = load_channels(row_ptr, b, c, c < C1, C1, ROWS)
    tile = load_sum(x_ptr, plus_ptr, skip_ptr, row, b, pixel, c, mask, C1, C2, SIZE, SCALE)
    if total_ptr is not None:
        store_first(total_ptr, b, pixel, c, tile, mask, C1, C2, SIZE)
    mean = tl.sum(tile, axis=0) / tl.minimum(SIZE - t * P, P)
    rest = tl.where(mask, tile - mean[None, :], 0.0)
    squares = tl.sum(rest * rest, axis=0)
    store_partial(partial_ptr, b, t, c, mean, squares, C1 + C2, (SIZE + P - 1) // P)


@triton.jit
def part_of_group(ptr, b, first_tile, c, ok, C: tl.constexpr, TILES: tl.constexpr, T: tl.constexpr):
    """The partial numbers of T tiles for channels c, as two [T, K] blocks, with tile numbers and mask."""
    t = first_tile + tl.arange(0, T)
    mask = (t < TILES)[:, None] & ok[None, :]
    here = ptr + b * (TILES * 2 * C) + (t[:, None] * (2 * C) + c[None, :])
    return t, mask, tl.load(here, mask=mask, other=0.0), tl.load(here + C, mask=mask, other=0.0)


@triton.jit
def forward_finish(
    partial_ptr, row_ptr, stats_ptr,
    C1: tl.constexpr, C: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, P: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """stats [B, groups, 2] = (mean, 1/std) from the partial numbers; one program per sample and group."""
    GROUPS: tl.constexpr = C // CG
    TILES: tl.constexpr = (SIZE + P - 1) // P
    b = (tl.program_id(0) // GROUPS).to(tl.int64)
    c = (tl.program_id(0) % GROUPS) * CG + tl.arange(0, K)
    ok = tl.arange(0, K) < CG
    row = load_channels(row_ptr, b, c, ok & (c < C1), C1, ROWS)
    sums = tl.zeros((T, K), tl.float32)
    for first in range(0, TILES, T):
        t, mask, means, _ = part_of_group(partial_ptr, b, first, c, ok, C, TILES, T)
        share = tl.minimum(SIZE - t * P, P).to(tl.float32) * (1.0 / (SIZE * CG))
        sums += tl.where(mask, (means + row[None, :]) * share[:, None], 0.0)
    mean = tl.sum(tl.sum(sums, axis=0), axis=0)
    sums = tl.zeros((T, K), tl.float32)
    for first in range(0, TILES, T):
        t, mask, means, squares = part_of_group(partial_ptr, b, first, c, ok, C, TILES, T)
        count = tl.minimum(SIZE - t * P, P).to(tl.float32)
        away = means + row[None, :] - mean
        sums += tl.where(mask, squares + away * away * count[:, None], 0.0)
    variance = tl.sum(tl.sum(sums, axis=0), axis=0) * (1.0 / (SIZE * CG))
    here = stats_ptr + tl.program_id(0).to(tl.int64) * 2
    tl.store(here, mean)
    tl.store(here + 1, inverse_root(variance + EPS))


@triton.jit
def forward_apply(
    x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, y_ptr,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """y = R(SiLU(GroupNorm([x + row, skip]))) for given statistics."""
    C: tl.constexpr = C1 + C2
    b, _, pixel, c, mask = tile_of_pixels(C, SIZE // 4 if RESAMPLE == DOWN else SIZE, P, K)
    ok = c < C
    row = load_channels(row_ptr, b, c, c < C1, C1, ROWS)
    weight = load_channels(weight_ptr, b, c, ok, C, WEIGHTS)
    beta = load_channels(bias_ptr, b, c, ok, C, BIASES)
    mean, rstd = load_per_group(stats_ptr, b, c, ok, C, CG)
    shift = mean - row
    scale = rstd * weight
    if RESAMPLE == DOWN:
        store_mean_of_four(
            y_ptr, x_ptr, None, skip_ptr, None, b, pixel, c, mask, shift, scale, beta,
            C1, C2, SIZE, W, 1.0, ACTIVATE, EXACT,
        )  # fmt: skip
    else:
        rest = load_pair(x_ptr, skip_ptr, b, pixel, c, mask, C1, C2, SIZE) - shift[None, :]
        store_activated(y_ptr, b, pixel, c, rest, mask, scale, beta, C, SIZE, W, ACTIVATE, RESAMPLE, EXACT)


@triton.jit
def backward_tile(
    v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, b, pixel, c, mask,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """(xhat, g, 1/std) of a tile: both backward kernels begin with it."""
    C: tl.constexpr = C1 + C2
    ok = c < C
    tile = load_pair(x_ptr, skip_ptr, b, pixel, c, mask, C1, C2, SIZE)
    v = load_cotangent(v_ptr, b, pixel, c, mask, C, SIZE, W, RESAMPLE)
    row = load_channels(row_ptr, b, c, ok & (c < C1), C1, ROWS)
    weight = load_channels(weight_ptr, b, c, ok, C, WEIGHTS)
    beta = load_channels(bias_ptr, b, c, ok, C, BIASES)
    mean, rstd = load_per_group(stats_ptr, b, c, ok, C, CG)
    xhat, g = normalise(tile, v, mean - row, rstd, weight, beta, ACTIVATE, EXACT)
    return xhat, g, rstd


@triton.jit
def backward_partial(
    v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, partial_ptr,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Per tile and channel: the sums of g and of g xhat."""
    b, t, pixel, c, mask = tile_of_pixels(C1 + C2, SIZE, P, K)
    xhat, g, _ = backward_tile(
        v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, b, pixel, c, mask,
        C1, C2, CG, SIZE, W, ROWS, WEIGHTS, BIASES, ACTIVATE, RESAMPLE, EXACT,
    )  # fmt: skip
    store_partial(
        partial_ptr, b, t, c, tl.sum(g, axis=0), tl.sum(g * xhat, axis=0), C1 + C2, (SIZE + P - 1) // P
    )


@triton.jit
def backward_finish(
    partial_ptr, means_ptr,
    C: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, P: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """means [B, groups, 2] of g and of g xhat; one program per sample and group."""
    GROUPS: tl.constexpr = C // CG
    TILES: tl.constexpr = (SIZE + P - 1) // P
    b = (tl.program_id(0) // GROUPS).to(tl.int64)
    c = (tl.program_id(0) % GROUPS) * CG + tl.arange(0, K)
    ok = tl.arange(0, K) < CG
    sum_g = tl.zeros((T, K), tl.float32)
    sum_gx = tl.zeros((T, K), tl.float32)
    for first in range(0, TILES, T):
        _, _, part_g, part_gx = part_of_group(partial_ptr, b, first, c, ok, C, TILES, T)
        sum_g += part_g
        sum_gx += part_gx
    here = means_ptr + tl.program_id(0).to(tl.int64) * 2
    tl.store(here, tl.sum(tl.sum(sum_g, axis=0), axis=0) * (1.0 / (SIZE * CG)))
    tl.store(here + 1, tl.sum(tl.sum(sum_gx, axis=0), axis=0) * (1.0 / (SIZE * CG)))


@triton.jit
def backward_apply(
    v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, means_ptr, add_ptr, more_ptr,
    v_x_ptr, v_skip_ptr,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    SCALE: tl.constexpr, ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """[v_x, v_skip] = rstd (g - mean(g) - xhat mean(g xhat)) + add for given means, and v_x = (v_x + more) SCALE."""
    C: tl.constexpr = C1 + C2
    b, _, pixel, c, mask = tile_of_pixels(C, SIZE, P, K)
    xhat, g, rstd = backward_tile(
        v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, b, pixel, c, mask,
        C1, C2, CG, SIZE, W, ROWS, WEIGHTS, BIASES, ACTIVATE, RESAMPLE, EXACT,
    )  # fmt: skip
    mean_g, mean_gx = load_per_group(means_ptr, b, c, c < C, C, CG)
    v_in = tl.fma(xhat, -mean_gx[None, :], g - mean_g[None, :]) * rstd[None, :]
    store_cotangent(v_x_ptr, v_skip_ptr, add_ptr, more_ptr, b, pixel, c, v_in, mask, C1, C2, SIZE, SCALE)
