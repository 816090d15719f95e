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
from ..kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform

__all__ = ["Batch", "BatchOrder", "Purpose", "StepRandom", "dropout_seed"]


class Purpose(IntEnum):
    """What random numbers are for. Two purposes never share a number."""

    TIME = 0
    NOISE = 1
    SHIFT = 2
    FLIP = 3


def dropout_seed(seed: int, step: int) -> int:
    """Seed of torch's own generator for one step: dropout knows no other source."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


@final
@dataclass(frozen=True, eq=False)
class StepRandom:
    """Random numbers of one training step, for the rows ``start..stop-1`` of its batch.

    They are the library's counter-based noise in the training domain: sample id = row of the batch,
    draw = training step, step = purpose. A row's numbers depend on nothing else, so that computing a batch
    in parts, on another device or on several processes draws the same ones.
    """

    seed: int
    step: int
    start: int
    stop: int
    device: torch.device

    @cached_property
    def _keys(self) -> NoiseKeys:
        rows = torch.arange(self.start, self.stop, dtype=torch.int64, device=self.device)
        seed = torch.tensor([self.seed], dtype=torch.int64, device=self.device)
        return NoiseKeys(seed, rows, torch.full_like(rows, self.step), Domain.TRAINING)

    def uniform(self, purpose: Purpose, count: int = 1) -> Tensor:
        """Uniform on (0, 1) in steps of 2^-23, float64 ``[B, count]``."""
        return philox_uniform(
            self._keys, purpose, Stream.FORWARD, (count, 1, 1), dtype=torch.float64
        ).flatten(1)

    def integers(self, purpose: Purpose, low: int, high: int, count: int = 1) -> Tensor:
        """Uniform on ``low..high`` (both included), int64 ``[B, count]``."""
        return (self.uniform(purpose, count) * (high - low + 1)).floor().to(torch.int64) + low

    def normal(self, purpose: Purpose, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal, float32 ``[B, *shape]``."""
        return philox_normal(self._keys, purpose, Stream.FORWARD, shape)


@final
@dataclass(frozen=True)
class Batch:
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
