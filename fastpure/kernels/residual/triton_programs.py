"""Sum of two activation tensors and a bias per channel, times a constant."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add(
    a_ptr, b_ptr, bias_ptr, out_ptr,
    SCALE: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out = ((a + b) + bias) SCALE; SIZE elements per sample, of which channels vary fastest."""
    BLOCKS: tl.constexpr = (SIZE + K - 1) // K
    start = (tl.program_id(0) // BLOCKS).to(tl.int64) * SIZE
    place = (tl.program_id(0) % BLOCKS) * K + tl.arange(0, K)
    mask = place < SIZE
    a = tl.load(a_ptr + start + place, mask=mask).to(tl.float32)
    total = a + tl.load(b_ptr + start + place, mask=mask).to(tl.float32)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + place % C, mask=mask).to(tl.float32)
    tl.store(out_ptr + start + place, (total * SCALE).to(out_ptr.dtype.element_ty), mask=mask)
