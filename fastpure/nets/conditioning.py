"""What a denoiser needs to know about the steps of a table, computed once, independent of the images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import mistake, whole


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Per step k of a table with K steps: label, hoisted embedding and noise level.

    ``labels`` [K] on the network's device (int64 for integer time, otherwise float32, or float64 for a
    float64 network); ``rows`` [K, S] for networks that hoist their embedding; the state at step k is
    ``alpha[k] x0 + sigma[k] noise``. ``usable[k]`` is False for steps that have no label or no noise level,
    such as forward diffusion.
    """

    labels: Tensor
    rows: Tensor | None
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    usable: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.alpha)

    def noise_level(self, k: int) -> tuple[float, float]:
        """(alpha, sigma) of step ``k``.

        Raises:
            ValueError: k is not a step of the table, or one at which no network can be called.
        """
        whole("k", k, 0, len(self) - 1)
        if not self.usable[k]:
            got = f"step {k} with alpha {self.alpha[k]}, sigma {self.sigma[k]}"
            raise ValueError(mistake("k", "a step with a finite label, alpha > 0 and sigma > 0", got))
        return self.alpha[k], self.sigma[k]

    def batch_labels(self, k: int, batch: int) -> Tensor:
        """The label of step ``k`` for every image, [batch]."""
        return self.labels[k].expand(batch)

    def row(self, k: int) -> Tensor | None:
        """The hoisted embedding of step ``k``, [1, S]."""
        return None if self.rows is None else self.rows[k : k + 1]


def usable_steps(labels: list[float], alpha: list[float], sigma: list[float]) -> tuple[bool, ...]:
    """Which steps have a finite label and a proper noise level."""
    return tuple(
        all(map(math.isfinite, step)) and step[1] > 0 and step[2] > 0
        for step in zip(labels, alpha, sigma, strict=True)
    )
