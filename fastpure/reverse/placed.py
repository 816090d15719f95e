"""Noise of parts of pictures: a pixel's depends on where in the picture it lies, not on which part asks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import NoiseKeys, Stream, philox_normal
from ..kernels.keys import SEED_MAX
from ..schedule import StepTable
from ..shown import Fields
from .noise import NoiseSource

ROW_OF_BLOCKS = 1 << 16
"""Blocks in a row of the plane that a picture lies in, and rows: no picture has as many."""


@dataclass(frozen=True, eq=False, repr=False)
class PlacedNoise(Fields):
    """Counter-based noise for parts of larger pictures: overlapping parts share it where they overlap.

    The plane is paved with blocks of the parts' size. Block (i, j) of picture s has the noise of the sample id
    ``i * 2**16 + j`` under the seed ``mixed(seed, s)``, and a part at (top, left) sees what its pixels have in the up
    to four blocks that it touches. So the noise of a pixel does not depend on the overlap, on the size of the picture
    or on which parts are computed together.

    Attributes:
        ahead: keys of the pictures [N], for the noise that diffuses the input.
        along: alike, of the reverse steps and of the guidance.
        picture: int64 [B], the picture (by position among the keys) that each part is of.
        top, left: int64 [B], the place of its first pixel.
    """

    ahead: NoiseKeys
    along: NoiseKeys
    picture: Tensor
    top: Tensor
    left: Tensor

    def bind(self, table: StepTable, x: Tensor) -> NoiseSource:
        """The noise of every row of ``table`` for parts like ``x`` [B, C, H, W]."""
        return _PlacedSource(self, table, x)


@dataclass(frozen=True, eq=False)
class _PlacedSource(NoiseSource):
    placed: PlacedNoise
    table: StepTable
    like: Tensor

    def row(self, k: int) -> Tensor | None:
        row = self.table.rows[k]
        keys, stream = (
            (self.placed.ahead, Stream.FORWARD) if row.forward else (self.placed.along, Stream.REVERSE)
        )
        return None if row.d == 0.0 else self._normal(keys, k, stream, self.like)

    def guidance(self, k: int, like: Tensor) -> Tensor:
        return self._normal(self.placed.along, k, Stream.GUIDANCE, like)

    def _normal(self, keys: NoiseKeys, k: int, stream: Stream, like: Tensor) -> Tensor:
        _, channels, height, width = like.shape
        noise = torch.empty_like(like, memory_format=torch.contiguous_format)
        top, left, picture = (
            values.tolist() for values in (self.placed.top, self.placed.left, self.placed.picture)
        )
        for one in dict.fromkeys(picture):
            parts = [i for i, owner in enumerate(picture) if owner == one]
            blocks: dict[tuple[int, int], int] = {}
            for i in parts:
                for row in range(top[i] // height, (top[i] + height - 1) // height + 1):
                    for column in range(left[i] // width, (left[i] + width - 1) // width + 1):
                        blocks.setdefault((row, column), len(blocks))
            named = NoiseKeys.make(
                mixed(int(keys.seed), int(keys.sample_ids[one])),
                [row * ROW_OF_BLOCKS + column for row, column in blocks],
                int(keys.draws[one]),
                keys.domain,
                like.device,
            )
            paved = philox_normal(named, k, stream, (channels, height, width), dtype=like.dtype)
            for i in parts:
                for (row, column), block in blocks.items():
                    here, there = _overlap(row * height, top[i], height)
                    across, over = _overlap(column * width, left[i], width)
                    if here.stop > here.start and across.stop > across.start:
                        noise[i, :, there, over] = paved[block][:, here, across]
        return noise


def _overlap(block: int, part: int, size: int) -> tuple[slice, slice]:
    """What a block from ``block`` on and a part from ``part`` on, both ``size`` long, share, in own places of each."""
    first, last = max(block, part), min(block, part) + size
    return slice(first - block, max(last, first) - block), slice(first - part, max(last, first) - part)


def mixed(seed: int, sample_id: int) -> int:
    """A 64-bit seed of a seed and a sample id (SplitMix64, Steele et al. 2014): for one seed, another for every id."""
    value = (seed % (SEED_MAX + 1) + 0x9E3779B97F4A7C15 * (sample_id + 1)) & SEED_MAX
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & SEED_MAX
    return value ^ (value >> 31)
