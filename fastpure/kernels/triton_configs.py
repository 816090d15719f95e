"""Tile sizes of the Triton kernels: a committed table instead of tuning at run time.

Tuning at run time would choose differently from run to run, change the order of sums with it, and break the
capture of graphs. Sizes follow from the image, the channels and the element size by the rules below; the batch
never enters, so that a sample's result does not depend on the batch around it.

The numbers were chosen from the compiled code (registers, occupancy, width of accesses; see
``bench/results/machine_code.md``), not yet from timings on a device; ``bench/bench_group_norm.py --sweep``
measures the neighbours of a rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ACCESS = 16
"""Bytes of the widest load or store of one thread."""

WIDEST_PAIRING = 64
"""Most channels of a block whose groups have a size that is no power of two (their sums cost the square)."""

FINISH_BLOCK = 4096
"""Partial numbers that a program reads at a time when it combines those of a group."""


@dataclass(frozen=True)
class TileRule:
    """How large a tile is, and who works on it.

    Attributes:
        most: bytes of the largest tile.
        good: bytes of a tile that leaves room for a second program on a multiprocessor.
        run: bytes of neighbouring channels wanted.
        per_thread: elements per thread, where a tile is large enough for ``fewest`` warps.
        least: bytes wanted at least, where the channels allow it.
        fewest: warps of a program at least, if each thread gets an access's worth of elements.
    """

    most: int
    good: int
    run: int
    per_thread: int
    least: int = 4096
    fewest: int = 4


_AMPERE = {
    "forward_fused": TileRule(65536, 32768, run=64, per_thread=64),
    "backward_fused": TileRule(32768, 32768, run=64, per_thread=32),
    "forward_partial": TileRule(16384, 16384, run=128, per_thread=32),
    "forward_apply": TileRule(8192, 8192, run=128, per_thread=32),
    "backward_partial": TileRule(16384, 16384, run=128, per_thread=32),
    "backward_apply": TileRule(8192, 8192, run=128, per_thread=16),
    "resample": TileRule(8192, 8192, run=128, per_thread=16),
    "residual": TileRule(8192, 8192, run=8192, per_thread=16),
}
RULES: dict[int, dict[str, TileRule]] = {80: _AMPERE, 90: _AMPERE | {}}
"""Generation (80: Ampere, 90: Hopper) -> kernel -> rule. The two still agree: no timing has told them apart."""


@dataclass(frozen=True)
class Tile:
    """A tile of ``pixels`` by ``channels`` (powers of two) for ``warps`` warps; ``groups`` whole groups (fused)."""

    pixels: int
    channels: int
    warps: int
    groups: int = 0

    @property
    def elements(self) -> int:
        return self.pixels * self.channels


def ceil_power(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << max(0, value - 1).bit_length()


def group_tile(
    architecture: int, kernel: str, size: int, channels: int, groups: int, itemsize: int
) -> Tile | None:
    """All ``size`` pixels of a few whole groups; None where that is more than a program can hold."""
    rule = RULES[architecture][kernel]
    width = channels // groups
    pixels = ceil_power(size)
    # So many groups begin on a 16-byte boundary.
    unit = ACCESS // math.gcd(ACCESS, width * itemsize) if channels * itemsize % ACCESS == 0 else 1
    unit = min(unit, groups)
    blocks = {n: ceil_power(n * width) for n in range(unit, groups + 1, unit)}
    if width & (width - 1):
        blocks = {n: block for n, block in blocks.items() if block <= WIDEST_PAIRING or n == unit}
    fitting = [n for n, block in blocks.items() if pixels * block * itemsize <= rule.good]
    wanted = max(rule.run, rule.least // pixels) // itemsize
    number = next((n for n in fitting if n * width >= wanted), fitting[-1] if fitting else unit)
    block = blocks[number]
    if pixels * block * itemsize > rule.most:
        return None
    return Tile(pixels, block, _warps(rule, pixels * block, itemsize), number)


def free_tile(architecture: int, kernel: str, size: int, channels: int, itemsize: int) -> Tile:
    """A tile that may begin at any pixel and any block of channels."""
    rule = RULES[architecture][kernel]
    block = min(ceil_power(rule.run // itemsize), ceil_power(channels))
    pixels = min(rule.most // (block * itemsize), ceil_power(size))
    return Tile(pixels, block, _warps(rule, pixels * block, itemsize))


def finish_tile(tiles: int, width: int) -> Tile:
    """Partial numbers of ``tiles`` tiles by one group of ``width`` channels, read a block at a time."""
    block = ceil_power(width)
    rows = min(ceil_power(tiles), max(1, FINISH_BLOCK // block))
    return Tile(rows, block, min(4, max(1, rows * block // 256)))


def flat_tile(architecture: int, kernel: str, itemsize: int) -> Tile:
    """A tile of neighbouring elements, whatever they are."""
    rule = RULES[architecture][kernel]
    elements = rule.most // itemsize
    return Tile(1, elements, _warps(rule, elements, itemsize))


def _warps(rule: TileRule, elements: int, itemsize: int) -> int:
    filled = elements * itemsize // (32 * ACCESS)  # so many warps make one full access per thread
    return min(16, max(1, elements // (32 * rule.per_thread), min(rule.fewest, filled)))
