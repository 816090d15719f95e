"""Projected gradient descent with expectation over transformation, and against noise that is held still (DW-box)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import one_of, positive, whole
from ..purify import Target
from .base import Problem, Proposal, Tick
from .gradient import Average, Objective, Query, counting, objective, query
from .gradient_attack import GradientAttack, TargetedAttack
from .ledger import Ledger
from .losses import LOSSES
from .weakness import Effort


@dataclass(frozen=True, kw_only=True)
class PGD(TargetedAttack):
    """PGD (Madry et al. 2018) with EOT (Athalye et al. 2018) and the defence's exact gradient.

    Attributes:
        step_size: length of a step in [0, 1] units, measured in ``norm``; 2.5 eps / n_iter if None.
        random_start: begin at a random point of the ball, else at the image, where no ``start`` is given.
        loss: "ce", "margin" or "dlr".
        start, targeted: see `StartedAttack` and `TargetedAttack`.
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
        logits = self.logits(problem)
        goal = objective(logits, self.loss_called(self.loss))
        # The loss gets its labels from here: where there are targets, both classes of each image.
        asked, counted = counting(logits)
        aimed = replace(problem, y=self.aims(problem, counted))
        found = self.ascend(aimed, goal, tick)
        if not asked or found.spent is None:
            return found
        return replace(
            found, spent=found.spent + self.mode().answer_cost(problem.target) * sum(asked) / len(problem.x)
        )

    def ascend(self, problem: Problem, goal: Objective, tick: Tick) -> Proposal:
        """Plain steps of fixed length up ``goal``."""
        step_size = self.step_size if self.step_size is not None else 2.5 * self.eps / self.n_iter
        n, x = self.n_draws(problem), self.first_point(problem)
        losses, flat = problem.x.new_zeros((self.n_iter, len(problem.x))), None
        agreement = Average(problem.x)
        ledger = Ledger(problem.x, self.mode().cost(problem.target) * n)
        for i in range(self.n_iter):
            draws = range(i * n, (i + 1) * n)
            found = query(goal, x, problem.y, problem.ids, draws, self.batch_size)
            losses[i] = found.loss
            agreement.add(found.agreement)
            ledger.walked(found.correct[None])
            flat = is_flat(found) if flat is None else flat
            x = self.budget.project(self.budget.ascend(x, found.gradient, step_size), problem.x)
            tick(i, float(losses[i].mean()) if len(x) else 0.0)
        return ledger.into(Proposal(x, losses, flat, agreement=agreement.mean))

    def first_point(self, problem: Problem) -> Tensor:
        """The first iterate."""
        given = self.given(problem)
        if given is not None:
            return given
        if not self.random_start or not len(problem.x):
            return problem.x.clone()
        return self.budget.start(problem.x, self.uniform(problem))


def is_flat(found: Query) -> Tensor:
    """Where the image is still classified correctly and its gradient exactly zero in every pixel, bool [B]."""
    return (found.correct > 0) & ~torch.any(found.gradient.flatten(1) != 0, dim=1)


VARIANTS = {"xi,z": "all", "xi": "forward", "z": "reverse"}
"""What is fixed and known: the diffusion noise xi, the noise z of the reverse steps, or both."""


@dataclass(frozen=True, kw_only=True)
class DWPGD(GradientAttack):
    """PGD against a defence whose noise is fixed, judged under that noise.

    DW(xi,z) fixes all noise: one gradient per iteration and one draw decide. DW(xi), also called semi-fixed or
    forward lock, fixes the diffusion of the input; DW(z) the reverse steps. What stays random is averaged over
    ``eot_iter`` draws and judged on ``eval_draws`` fresh ones.

    Attributes:
        variant: "xi,z", "xi" or "z".
        draw: which realisation is fixed.
        step_size: in [0, 1] units; eps / 4 if None, as published (2/255 for 8/255).
        random_start: begin at a random point of the ball, else at the image, as published.
        loss: "ce", "margin" or "dlr".
    """

    eot_iter: int = 10
    variant: str = "xi,z"
    draw: int = 0
    step_size: float | None = None
    random_start: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("variant", self.variant, VARIANTS)
        whole("draw", self.draw, maximum=2**32 - 1)
        one_of("loss", self.loss, LOSSES)
        if self.step_size is not None:
            positive("step_size", self.step_size)

    def conditions(self, target: Target) -> AbstractContextManager[object]:
        """The target with its noise held still."""
        return target.fixed(self.draw, VARIANTS[self.variant])

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        own = super().effort(n_classes)
        return replace(own, noisy=own.noisy and VARIANTS[self.variant] != "all")

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """PGD's last iterate."""
        return self._pgd().propose(problem, tick)

    def _pgd(self) -> PGD:
        step_size = self.step_size if self.step_size is not None else self.eps / 4
        return PGD(**self.shared(), step_size=step_size, random_start=self.random_start, loss=self.loss)
