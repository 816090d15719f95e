"""Where a training step's images and random numbers come from: pure functions of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset
from ..errors import whole
from ..kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform
from ..kernels.keys import WORD_MAX
from ..shown import Fields


class Purpose(IntEnum):
    """What random numbers are for. Two purposes never share a number."""

    TIME = 0
    NOISE = 1
    SHIFT = 2
    FLIP = 3
    MAPPING = 4
    INNER_NOISE = 5
    START = 6
    END_TIME = 7
    LABEL_DROPOUT = 8


REPEATS = 256
"""How often one step may draw for the same purpose: inner loops need fresh numbers in every iteration."""


def dropout_seed(seed: int, step: int, start: int = 0) -> int:
    """Seed of torch's own generator for the part of a step's batch that begins at row ``start``.

    Dropout knows no other source of randomness. A batch in parts has a seed per part, so that parts give the
    same on one process after another as on several at a time.
    """
    entropy = [seed, step] if start == 0 else [seed, step, start]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


@final
@dataclass(frozen=True, eq=False)
class StepRandom:
    """Random numbers of one training step, for the rows ``start..stop-1`` of its batch.

    They are the library's counter-based noise in the training domain: sample id = row of the batch,
    draw = training step, step = purpose + 256 * repeat. A row's numbers depend on nothing else, so that
    computing a batch in parts, on another device or on several processes draws the same ones.
    """

    seed: int
    step: int
    start: int
    stop: int
    device: torch.device

    @cached_property
    def _keys(self) -> NoiseKeys:
        return self._keys_of(torch.arange(self.start, self.stop, dtype=torch.int64, device=self.device))

    def uniform(self, purpose: Purpose, count: int = 1, repeat: int = 0) -> Tensor:
        """Uniform on (0, 1) in steps of 2^-23, float64 ``[B, count]``; other numbers for another ``repeat``."""
        place = _place(purpose, repeat)
        return philox_uniform(self._keys, place, Stream.FORWARD, (count, 1, 1), dtype=torch.float64).flatten(
            1
        )

    def integers(self, purpose: Purpose, low: int, high: int, count: int = 1) -> Tensor:
        """Uniform on ``low..high`` (both included), int64 ``[B, count]``."""
        return (self.uniform(purpose, count) * (high - low + 1)).floor().to(torch.int64) + low

    def normal(self, purpose: Purpose, shape: tuple[int, int, int], repeat: int = 0) -> Tensor:
        """Standard normal, float32 ``[B, *shape]``; other numbers for another ``repeat``."""
        return philox_normal(self._keys, _place(purpose, repeat), Stream.FORWARD, shape)

    def shared(self, purpose: Purpose) -> Tensor:
        """One number for the whole batch, whatever rows of it this is: uniform on (0, 1), float64 ``[]``."""
        keys = self._keys_of(torch.tensor([WORD_MAX], dtype=torch.int64, device=self.device))
        return philox_uniform(keys, purpose, Stream.FORWARD, (1, 1, 1), dtype=torch.float64).view(())

    def _keys_of(self, rows: Tensor) -> NoiseKeys:
        seed = torch.tensor([self.seed], dtype=torch.int64, device=self.device)
        return NoiseKeys(seed, rows, torch.full_like(rows, self.step), Domain.TRAINING)


def _place(purpose: Purpose, repeat: int) -> int:
    return int(purpose) + 256 * whole("repeat", repeat, 0, REPEATS - 1)


@final
@dataclass(frozen=True, repr=False)
class Batch(Fields):
    """What a loss sees: images float32 ``[B, C, H, W]`` in [0, 1], labels int64 ``[B]``, randomness."""

    images: Tensor
    labels: Tensor
    random: StepRandom


@final
class BatchOrder:
    """Positions of the images of every step: consecutive pieces of one reshuffling after another."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        self._count, self._batch_size, self._seed = len(dataset), batch_size, seed
        self._shuffles: dict[int, np.ndarray] = {}

    def rows(self, step: int) -> Tensor:
        """int64 ``[batch_size]`` for the zero-based step; a batch may reach into the next reshuffling."""
        first = step * self._batch_size
        epochs, places = np.divmod(np.arange(first, first + self._batch_size), self._count)
        needed = range(int(epochs[0]), int(epochs[-1]) + 1)
        self._shuffles = {epoch: self._shuffle(epoch) for epoch in needed}
        rows = np.concatenate([self._shuffles[epoch][places[epochs == epoch]] for epoch in needed])
        return torch.from_numpy(rows)

    def _shuffle(self, epoch: int) -> np.ndarray:
        if epoch in self._shuffles:
            return self._shuffles[epoch]
        seeds = np.random.SeedSequence([self._seed, epoch]).generate_state(4)
        return np.random.RandomState(seeds).permutation(self._count)  # a stream that numpy keeps for good
