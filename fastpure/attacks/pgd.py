"""Projected gradient descent with expectation over transformation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import one_of, positive
from .base import Problem, Proposal, Tick
from .gradient import Average, Objective, Query, objective, query
from .gradient_attack import GradientAttack
from .losses import LOSSES


@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """PGD (Madry et al. 2018) with EOT (Athalye et al. 2018) and the defence's exact gradient.

    Attributes:
        step_size: length of a step in [0, 1] units, measured in ``norm``; 2.5 eps / n_iter if None.
        random_start: begin at a random point of the ball, else at the image.
        loss: "ce", "margin" or "dlr".
    """

    step_size: float | None = None
    random_start: bool = True
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, LOSSES)
        if self.step_size is not None:
            positive("step_size", self.step_size)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The last iterate and the EOT-averaged loss at every iterate."""
        return self.ascend(problem, objective(self.logits(problem), LOSSES[self.loss]), tick)

    def ascend(self, problem: Problem, goal: Objective, tick: Tick) -> Proposal:
        """Plain steps of fixed length up ``goal``."""
        step_size = self.step_size if self.step_size is not None else 2.5 * self.eps / self.n_iter
        n, x = self.n_draws(problem), self.start(problem)
        losses, flat = problem.x.new_zeros((self.n_iter, len(problem.x))), None
        agreement = Average(problem.x)
        for i in range(self.n_iter):
            draws = range(i * n, (i + 1) * n)
            found = query(goal, x, problem.y, problem.ids, draws, self.batch_size)
            losses[i] = found.loss
            agreement.add(found.agreement)
            flat = is_flat(found) if flat is None else flat
            x = self.budget.project(self.budget.ascend(x, found.gradient, step_size), problem.x)
            tick(i, float(losses[i].mean()) if len(x) else 0.0)
        return Proposal(x, losses, flat, agreement=agreement.mean)

    def start(self, problem: Problem) -> Tensor:
        """The first iterate."""
        if not self.random_start or not len(problem.x):
            return problem.x.clone()
        return self.budget.start(problem.x, self.uniform(problem))


def is_flat(found: Query) -> Tensor:
    """Where the image is still classified correctly and its gradient exactly zero in every pixel, bool [B]."""
    return (found.correct > 0) & ~torch.any(found.gradient.flatten(1) != 0, dim=1)
