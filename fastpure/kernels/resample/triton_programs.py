"""Copying pixels to 2x2 blocks, and summing 2x2 blocks, times a constant."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from fastpure.kernels.triton_indexing import child, tile_of_pixels


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
