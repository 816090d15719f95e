"""GroupNorm+SiLU for images whose groups do not fit one program: partial statistics, finish, apply.

A first kernel leaves two numbers per tile of pixels and channel, a small one combines them per group in a fixed
order (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
1979, in its many-part form: mean of the means, then squares about it), a third applies the result. Nothing is
accumulated across programs.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from fastpure.kernels.group_norm_silu.triton_tile import (
    DOWN,
    inverse_root,
    load_channels,
    load_cotangent,
    load_pair,
    load_per_group,
    normalise,
    store_activated,
    store_mean_of_four,
    store_pair,
)
from fastpure.kernels.triton_indexing import tile_of_pixels


@triton.jit
def store_partial(ptr, b, t, c, first, second, C: tl.constexpr, TILES: tl.constexpr):
    """Two numbers per channel into [B, TILES, 2, C]."""
    here = ptr + (b * TILES + t) * (2 * C) + c
    tl.store(here, first, mask=c < C)
    tl.store(here + C, second, mask=c < C)


@triton.jit
def forward_partial(
    x_ptr, skip_ptr, partial_ptr,
    C1: tl.constexpr, C2: tl.constexpr, SIZE: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Per tile and channel of [x, skip]: the mean, and the sum of squares about it."""
    b, t, pixel, c, mask = tile_of_pixels(C1 + C2, SIZE, P, K)
    tile = load_pair(x_ptr, skip_ptr, b, pixel, c, mask, C1, C2, SIZE)
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
    C: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    P: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """stats [B, groups, 2] = (mean, 1/std) from the partial numbers; one program per sample and group."""
    GROUPS: tl.constexpr = C // CG
    TILES: tl.constexpr = (SIZE + P - 1) // P
    b = (tl.program_id(0) // GROUPS).to(tl.int64)
    c = (tl.program_id(0) % GROUPS) * CG + tl.arange(0, K)
    ok = tl.arange(0, K) < CG
    row = load_channels(row_ptr, b, c, ok, C, ROWS)
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
    """y = R(SiLU(GroupNorm([x, skip] + row))) for given statistics."""
    C: tl.constexpr = C1 + C2
    b, _, pixel, c, mask = tile_of_pixels(C, SIZE // 4 if RESAMPLE == DOWN else SIZE, P, K)
    ok = c < C
    row = load_channels(row_ptr, b, c, ok, C, ROWS)
    weight = load_channels(weight_ptr, b, c, ok, C, WEIGHTS)
    beta = load_channels(bias_ptr, b, c, ok, C, BIASES)
    mean, rstd = load_per_group(stats_ptr, b, c, ok, C, CG)
    shift = mean - row
    scale = rstd * weight
    if RESAMPLE == DOWN:
        store_mean_of_four(
            y_ptr, x_ptr, skip_ptr, b, pixel, c, mask, shift, scale, beta, C1, C2, SIZE, W, ACTIVATE, EXACT
        )
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
    row = load_channels(row_ptr, b, c, ok, C, ROWS)
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
    v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, means_ptr, add_ptr, v_x_ptr, v_skip_ptr,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """[v_x, v_skip] = rstd (g - mean(g) - xhat mean(g xhat)) + add, for given means."""
    C: tl.constexpr = C1 + C2
    b, _, pixel, c, mask = tile_of_pixels(C, SIZE, P, K)
    xhat, g, rstd = backward_tile(
        v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, b, pixel, c, mask,
        C1, C2, CG, SIZE, W, ROWS, WEIGHTS, BIASES, ACTIVATE, RESAMPLE, EXACT,
    )  # fmt: skip
    mean_g, mean_gx = load_per_group(means_ptr, b, c, c < C, C, CG)
    v_in = tl.fma(xhat, -mean_gx[None, :], g - mean_g[None, :]) * rstd[None, :]
    if add_ptr is not None:
        v_in += load_pair(add_ptr, add_ptr, b, pixel, c, mask, C, 0, SIZE)
    store_pair(v_x_ptr, v_skip_ptr, b, pixel, c, v_in, mask, C1, C2, SIZE)
