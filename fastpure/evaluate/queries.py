"""How many times an attack asks, found out by letting it attack a defence that costs nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from .. import methods
from ..attacks.base import Attack, Problem
from ..data import Dataset
from ..kernels import Domain
from ..methods import Method
from ..purify import Target
from ..purify.inputs import Held, held_noise, holding
from .judging import frozen
from .protocol import Protocol


@final
@dataclass(frozen=True, eq=False)
class _StandIn(Target):
    """Answers class 0 with certainty whatever comes, at no cost but with a gradient, and counts what it is asked.

    It purifies by doing nothing, for attacks that look at the steps.
    """

    random: bool = True
    purifying: bool = False
    gradients: list[int] = field(default_factory=list)
    judgements: list[int] = field(default_factory=list)

    @property
    def numbered(self) -> bool:
        return self.random

    @property
    def frozen(self) -> bool:
        return held_noise(self.module) is not None

    def fixed(self, draw: int = 0, part: str = "all") -> AbstractContextManager[object]:
        return holding(self.module, Held(draw, part)) if part == "all" else nullcontext()

    @property
    def purifies(self) -> bool:
        return self.purifying

    @property
    def method(self) -> Method:
        return methods.diffpure(t=0.01, dt=0.01)

    def trajectory(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        return torch.stack([x * 1.0] * (len(self.method.steps) + 1))

    def _classify(self, purified: Tensor) -> Tensor:
        (self.gradients if torch.is_grad_enabled() and purified.requires_grad else self.judgements).append(
            len(purified)
        )
        slope = torch.arange(1, self.n_classes + 1, dtype=purified.dtype, device=purified.device)
        certain = 10.0 * (slope == 1).to(purified.dtype)
        return certain + 1e-3 * purified.flatten(1).mean(1, keepdim=True) * slope

    def describe(self) -> dict[str, Any]:
        return {"kind": "stand-in"}

    def _answer(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        return self._classify(x)

    def _probed(self, x: Tensor, ids: Tensor) -> Target:
        return self


def count_queries(
    dataset: Dataset, attack: Attack | None, protocol: Protocol, *, random: bool, purifies: bool
) -> tuple[float, float]:
    """Purifications with and without gradient per image that the attack asks for when it breaks nothing.

    Args:
        dataset: for the shape of the images and the number of classes.
        attack: whose queries.
        protocol: that decides.
        random: whether the target draws noise that has a number.
        purifies: whether it is a ``Defense``.
    """
    if attack is None or not attack.asks:
        return 0.0, 0.0
    n, n_classes = 2, max(len(dataset.classes), 2)
    target = _StandIn(nn.Identity().eval(), n_classes, random=random, purifying=purifies)
    x = torch.rand((n, *dataset.image_shape), generator=torch.Generator().manual_seed(0))
    problem = Problem(target, x, torch.zeros(n, dtype=torch.int64), torch.arange(n))
    if attack.gradient not in (None, "exact"):
        # Another gradient mode asks as often, and no query costs more than the exact one.
        attack = replace(attack, gradient="exact", surrogate_steps=None, surrogate_dt=None)  # type: ignore[type-var]
    with frozen(target, protocol), attack.conditions(target):
        attack.propose(problem, lambda iteration, loss: None)
    return sum(target.gradients) / n, sum(target.judgements) / n
