"""How many times an attack asks, found out by letting it attack a defence that costs nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import methods
from ..attacks.base import Attack, Problem
from ..data import Dataset
from ..nets import Denoiser
from ..purify import Defense, Purifier
from .judging import frozen
from .protocol import Protocol


class _Counter(nn.Module):
    """Counts rows that pass; copies of it count for the same total."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients = self.judgements = 0

    def count(self, x: Tensor) -> None:
        if torch.is_grad_enabled() and x.requires_grad:
            self.gradients += len(x)
        else:
            self.judgements += len(x)

    def __deepcopy__(self, memo: Any) -> _Counter:
        return self


class _Sure(nn.Module):
    """Says class 0 with certainty whatever comes, but has a gradient."""

    def __init__(self, n_classes: int, counter: _Counter | None) -> None:
        super().__init__()
        self.n_classes, self.counter = n_classes, counter
        self.eval()

    def forward(self, u: Tensor) -> Tensor:
        if self.counter is not None:
            self.counter.count(u)
        slope = torch.arange(1, self.n_classes + 1, dtype=u.dtype, device=u.device)
        certain = 10.0 * (slope == 1).to(u.dtype)
        return certain + 1e-3 * u.flatten(1).mean(1, keepdim=True) * slope


class _CountingPurifier(Purifier):
    """Returns its input and counts it."""

    def __init__(self, denoiser: Denoiser, counter: _Counter) -> None:
        super().__init__(denoiser, methods.diffpure(t=0.01, dt=0.01))
        self.counter = counter

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        self.counter.count(x)
        return x * 1.0

    def trajectory(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        self.counter.count(x)
        return torch.stack([x * 1.0] * (len(self.method.steps) + 1))


def count_queries(
    defense: nn.Module, dataset: Dataset, attack: Attack | None, protocol: Protocol
) -> tuple[float, float]:
    """Purifications with and without gradient per image that the attack asks for when it breaks nothing."""
    if attack is None or not attack.asks:
        return 0.0, 0.0
    counter, n = _Counter(), 2
    n_classes = max(len(dataset.classes), 2)
    stand_in: nn.Module = _Sure(n_classes, counter)
    if isinstance(defense, Defense):
        network = Denoiser.from_module(nn.Identity().eval(), image_shape=dataset.image_shape)
        stand_in = Defense(_CountingPurifier(network, counter), _Sure(n_classes, None))
    x = torch.rand((n, *dataset.image_shape), generator=torch.Generator().manual_seed(0))
    problem = Problem(stand_in, x, torch.zeros(n, dtype=torch.int64), torch.arange(n), n_classes)
    if getattr(attack, "gradient", "exact") != "exact":
        # Another gradient mode asks as often, and no query costs more than the exact one.
        attack = replace(attack, gradient="exact", surrogate_steps=None, surrogate_dt=None)  # type: ignore[type-var]
    with frozen(stand_in, protocol), attack.conditions(stand_in):
        attack.propose(problem, lambda iteration, loss: None)
    return counter.gradients / n, counter.judgements / n
