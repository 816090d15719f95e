"""Programs that go over activations once, and which part of them a program works on.

Copying pixels to 2x2 blocks, summing 2x2 blocks, and the sum of two tensors and a bias, each times a constant.
Activations are channels_last, so channels vary fastest.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of_pixels(C: tl.constexpr, SIZE: tl.constexpr, P: tl.constexpr, K: tl.constexpr):
    """(sample, tile number, pixels [P], channels [K], mask [P, K]) of this program.

    SIZE pixels of C channels per sample, in tiles of P by K. The sample is int64: no offset overflows.
    """
    BLOCKS: tl.constexpr = (C + K - 1) // K
    TILES: tl.constexpr = (SIZE + P - 1) // P
    number = tl.program_id(0) // BLOCKS
    b = (number // TILES).to(tl.int64)
    t = number % TILES
    pixel = t * P + tl.arange(0, P)
    c = (tl.program_id(0) % BLOCKS) * K + tl.arange(0, K)
    return b, t, pixel, c, (pixel < SIZE)[:, None] & (c < C)[None, :]


@triton.jit
def child(pixel, k: tl.constexpr, W: tl.constexpr):
    """Index, in an image of width 2 W, of the k-th of the four pixels under ``pixel`` of an image of width W."""
    return (2 * (pixel // W) + k // 2) * (2 * W) + 2 * (pixel % W) + k % 2


@triton.jit
def spread(
    x_ptr, out_ptr, SCALE: tl.constexpr,
    C: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out[2h + i, 2w + j] = SCALE x[h, w]; SIZE pixels of x, W its width."""
    b, _, pixel, c, mask = tile_of_pixels(C, SIZE, P, K)
    tile = tl.load(x_ptr + b * (SIZE * C) + (pixel[:, None] * C + c[None, :]), mask=mask)
    tile = (tile.to(tl.float32) * SCALE).to(out_ptr.dtype.element_ty)
    for k in tl.static_range(4):
        here = out_ptr + b * (4 * SIZE * C) + (child(pixel, k, W)[:, None] * C + c[None, :])
        tl.store(here, tile, mask=mask)


@triton.jit
def gather(
    x_ptr, out_ptr, SCALE: tl.constexpr,
    C: tl.constexpr, SIZE: tl.constexpr, W: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out[h, w] = SCALE (sum of x[2h + i, 2w + j]); SIZE pixels of out, W its width."""
    b, _, pixel, c, mask = tile_of_pixels(C, SIZE, P, K)
    total = tl.zeros((P, K), tl.float32)
    for k in tl.static_range(4):
        here = x_ptr + b * (4 * SIZE * C) + (child(pixel, k, W)[:, None] * C + c[None, :])
        total += tl.load(here, mask=mask, other=0.0).to(tl.float32)
    here = out_ptr + b * (SIZE * C) + (pixel[:, None] * C + c[None, :])
    tl.store(here, (total * SCALE).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add(
    a_ptr, b_ptr, bias_ptr, out_ptr,
    SCALE: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out = ((a + b) + bias) SCALE, with a bias per sample if ROWS.

    SIZE elements per sample, of which channels vary fastest.
    """
    BLOCKS: tl.constexpr = (SIZE + K - 1) // K
    sample = (tl.program_id(0) // BLOCKS).to(tl.int64)
    start = sample * SIZE
    place = (tl.program_id(0) % BLOCKS) * K + tl.arange(0, K)
    mask = place < SIZE
    a = tl.load(a_ptr + start + place, mask=mask).to(tl.float32)
    total = a + tl.load(b_ptr + start + place, mask=mask).to(tl.float32)
    if bias_ptr is not None:
        offset = sample * C if ROWS else 0
        total += tl.load(bias_ptr + offset + place % C, mask=mask).to(tl.float32)
    tl.store(out_ptr + start + place, (total * SCALE).to(out_ptr.dtype.element_ty), mask=mask)
