"""What networks are told about the steps of a table and about noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..errors import mistake, whole
from ..schedule import VP
from ..shown import Fields
from .conversion import FlowPath


@dataclass(frozen=True, eq=False, repr=False)
class Conditioning(Fields):
    """What a denoiser needs to know about the K steps of a table, computed once, independent of the images.

    Attributes:
        labels: [K] on the network's device; int64 for integer time, otherwise float32, or float64 for a float64
            network.
        embeddings: [K, S] for networks that hoist their embedding, else None.
        alpha: the state at step k is ``alpha[k] x0 + sigma[k] noise``.
        sigma: see ``alpha``.
        usable: False for steps that have no label or no noise level, such as forward diffusion.
    """

    labels: Tensor
    embeddings: Tensor | None
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

    def embedding(self, k: int) -> Tensor | None:
        """The hoisted embedding of step ``k``, [1, S]."""
        return None if self.embeddings is None else self.embeddings[k : k + 1]


def usable_steps(labels: list[float], alpha: list[float], sigma: list[float]) -> tuple[bool, ...]:
    """Which steps have a finite label and a proper noise level."""
    return tuple(
        all(map(math.isfinite, step)) and step[1] > 0 and step[2] > 0
        for step in zip(labels, alpha, sigma, strict=True)
    )


def labels_at(ratio: Tensor, time_input: str, path: FlowPath | None) -> Tensor:
    """What a network of the linear schedule, or of ``path``, is told at noise levels sigma / alpha = ``ratio`` [B]."""
    if path is not None:
        return cast(Tensor, path.label(torch.ones_like(ratio), ratio))
    if time_input == "sigma":
        return ratio
    vp = VP()
    slope, integral = vp.beta_max - vp.beta_min, torch.log1p(ratio.square())
    t = 2.0 * integral / (vp.beta_min + torch.sqrt(vp.beta_min**2 + 2.0 * slope * integral))
    return torch.floor(1000.0 * t + 1e-6) if time_input == "index" else 999.0 * t
