"""Rows, inputs and keys for the tests of the row update."""

from __future__ import annotations

import torch

from fastpure.kernels import NoiseKeys
from fastpure.schedule import KERNEL_COLUMNS

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 1, 1, 1023), (3, 2, 33, 31), (2, 1, 1, 1025)]
PLAIN = {"a": 1.013, "b": -0.27, "c": 0.113, "alpha": 0.9, "sigma": 0.43}
NOISY = PLAIN | {"d": 0.31}
MULTISTEP = NOISY | {"p": -0.5, "q": 1.11, "r": -0.4778, "u": 0.2, "s": 0.07}
ROWS = {
    "forward": {"a": 0.9, "d": 0.43},
    "plain": PLAIN,
    "noisy": NOISY,
    "multistep": MULTISTEP,
    "clipped": MULTISTEP | {"clip": 1.0},
}


def images(shape, dtype, fmt=torch.contiguous_format, seed=0):
    """State, network output, guidance gradient and register; predicted images lie inside and outside."""
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(4))
    return [d.contiguous(memory_format=fmt) for d in draws]


def keys_for(batch):
    return NoiseKeys.make(99, list(range(batch)), 3)


def coefficients(table):
    return dict(zip(KERNEL_COLUMNS, table.double()[0].tolist(), strict=False))
