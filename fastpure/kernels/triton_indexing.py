"""Which part of an activation tensor a Triton program works on; channels_last, so channels vary fastest."""

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
