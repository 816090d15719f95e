"""GroupNorm+SiLU in one pass over memory: a program holds all pixels of a few whole groups in registers.

Statistics are two-pass: the mean first, then the mean square of what is left. Sums run over a tile whose shape
is fixed by the image and the channels, never by the batch, in the compiler's fixed tree order, and nothing is
accumulated across programs: the same sample gives the same bits in any batch.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from fastpure.kernels.group_norm_silu.triton_tile import (
    DOWN,
    group_sums,
    inverse_root,
    load_channels,
    load_cotangent,
    load_pair,
    load_per_group,
    normalise,
    store_activated,
    store_mean_of_four,
    store_pair,
    store_per_group,
)


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
    x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, y_ptr, stats_ptr,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    EPS: tl.constexpr, ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr,
    NG: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """y = R(SiLU(GroupNorm([x, skip] + row))); stats = (mean, 1/std) of every sample and group."""
    C: tl.constexpr = C1 + C2
    b, c, ok = block_of_groups(C, CG, NG, K)
    pixel = tl.arange(0, P)
    mask = (pixel < SIZE)[:, None] & ok[None, :]
    tile = load_pair(x_ptr, skip_ptr, b, pixel, c, mask, C1, C2, SIZE)
    row = load_channels(row_ptr, b, c, ok, C, ROWS)
    weight = load_channels(weight_ptr, b, c, ok, C, WEIGHTS)
    beta = load_channels(bias_ptr, b, c, ok, C, BIASES)

    # The row only moves a channel's mean: (x + row) - mean = x - (mean - row).
    mean = group_sums(tile, P, K, CG) * (1.0 / (SIZE * CG))
    if row_ptr is not None:
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
            y_ptr, x_ptr, skip_ptr, b, coarse, c, inside, shift, scale, beta, C1, C2, SIZE, W, ACTIVATE, EXACT
        )
    else:
        store_activated(y_ptr, b, pixel, c, rest, mask, scale, beta, C, SIZE, W, ACTIVATE, RESAMPLE, EXACT)


@triton.jit
def backward_fused(
    v_ptr, x_ptr, skip_ptr, row_ptr, weight_ptr, bias_ptr, stats_ptr, add_ptr, v_x_ptr, v_skip_ptr,
    C1: tl.constexpr, C2: tl.constexpr, CG: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    ACTIVATE: tl.constexpr, RESAMPLE: tl.constexpr, EXACT: tl.constexpr,
    NG: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """[v_x, v_skip] = rstd (g - mean(g) - xhat mean(g xhat)) + add with g = weight SiLU' R^T v."""
    C: tl.constexpr = C1 + C2
    b, c, ok = block_of_groups(C, CG, NG, K)
    pixel = tl.arange(0, P)
    mask = (pixel < SIZE)[:, None] & ok[None, :]
    tile = load_pair(x_ptr, skip_ptr, b, pixel, c, mask, C1, C2, SIZE)
    v = load_cotangent(v_ptr, b, pixel, c, mask, C, SIZE, W, RESAMPLE)
    row = load_channels(row_ptr, b, c, ok, C, ROWS)
    weight = load_channels(weight_ptr, b, c, ok, C, WEIGHTS)
    beta = load_channels(bias_ptr, b, c, ok, C, BIASES)
    mean, rstd = load_per_group(stats_ptr, b, c, ok, C, CG)

    xhat, g = normalise(tile, v, mean - row, rstd, weight, beta, ACTIVATE, EXACT)  # g is 0 where masked
    mean_g = group_sums(g, P, K, CG) * (1.0 / (SIZE * CG))
    mean_gx = group_sums(g * xhat, P, K, CG) * (1.0 / (SIZE * CG))
    v_in = tl.fma(xhat, -mean_gx[None, :], g - mean_g[None, :]) * rstd[None, :]
    if add_ptr is not None:
        v_in += load_pair(add_ptr, add_ptr, b, pixel, c, mask, C, 0, SIZE)
    store_pair(v_x_ptr, v_skip_ptr, b, pixel, c, v_in, mask, C1, C2, SIZE)
