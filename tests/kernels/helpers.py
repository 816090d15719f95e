"""What the kernel tests share: the back ends to run, keys of noise, and memory with guards around it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastpure.kernels import Domain, NoiseKeys, extension
from fastpure.schedule import KERNEL_COLUMNS, KERNEL_WIDTH

EXTENSION = extension.load()
REQUIRED = os.environ.get("FASTPURE_EXT") == "1"  # as when building: absence is an error, not a skip
needs_ext = pytest.mark.skipif(EXTENSION.module is None and not REQUIRED, reason=str(EXTENSION.reason))
BACKENDS = ["reference", pytest.param("host", marks=needs_ext)]
DTYPES = [torch.float32, torch.float64]
FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPE = (3, 5, 7)
"""An image with odd sides."""

GUARD = 64
POISON = 1.0e30


def keys_for(
    ids: Sequence[int], draw: int | Tensor = 0, domain: int = Domain.DEFENSE, seed: int = 2024
) -> NoiseKeys:
    """Keys of these samples."""
    return NoiseKeys.make(seed, ids, draw, domain)


def guarded(shape: tuple[int, ...], dtype: torch.dtype, fmt: torch.memory_format) -> tuple[Tensor, Tensor]:
    """A tensor of ``shape`` laid out in ``fmt``, and the poisoned buffer it is the middle of."""
    buffer = torch.full((math.prod(shape) + 2 * GUARD,), POISON, dtype=dtype)
    batch, channels, height, width = shape
    middle = buffer[GUARD : buffer.numel() - GUARD]
    if fmt is torch.channels_last:
        return middle.view(batch, height, width, channels).permute(0, 3, 1, 2), buffer
    return middle.view(shape), buffer


def guards_intact(buffer: Tensor) -> bool:
    """Whether nothing was written outside."""
    return bool((buffer[:GUARD] == POISON).all() and (buffer[-GUARD:] == POISON).all())


def table_of(*rows: dict[str, float], dtype: torch.dtype = torch.float32) -> Tensor:
    """A table from named coefficients; those not named are 0, except alpha and sigma."""
    table = torch.zeros(len(rows), KERNEL_WIDTH, dtype=dtype)
    for k, row in enumerate(rows):
        for name, value in ({"alpha": 1.0, "sigma": 1.0} | row).items():
            table[k, KERNEL_COLUMNS.index(name)] = value
    return table


def step_of(k: int) -> Tensor:
    """A step as the kernels want it."""
    return torch.tensor([k], dtype=torch.int64)
