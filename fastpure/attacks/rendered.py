"""Attacks whose images are rendered from parameters (a flow, filters) and not confined to an lp ball."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from ..errors import one_of, positive, whole
from .base import Attack, Problem
from .gradient import Objective, objective
from .gradient_modes import GradientMode, has_noise
from .losses import LOSSES
from .weakness import Effort


@dataclass(frozen=True, kw_only=True)
class RenderedAttack(Attack):
    """Base of those attacks. The gradient with respect to the image, averaged over draws, is pulled back to them.

    Attributes:
        bound: of the change, in the attack's own measure.
        n_iter: iterations.
        eot_iter: draws averaged per iteration; 1 where nothing is random.
        gradient: gradient mode; ``surrogate_steps`` and ``surrogate_dt`` as in PGD.
        loss: "ce", "margin" or "dlr".
        eval_draws: fresh draws that decide in the end.
        batch_size: most (image, draw) pairs in one network call.
    """

    bound: float = 0.05
    n_iter: int = 100
    eot_iter: int = 20
    gradient: str = "exact"
    surrogate_steps: int | None = None
    surrogate_dt: float | None = None
    loss: str = "ce"
    eval_draws: int = 10
    batch_size: int = 256

    def __post_init__(self) -> None:
        positive("bound", self.bound)
        one_of("loss", self.loss, LOSSES)
        for name in ("n_iter", "eot_iter", "eval_draws", "batch_size"):
            whole(name, getattr(self, name), minimum=1)
        self.mode()

    @property
    @abstractmethod
    def measure(self) -> str:
        """What ``bound`` limits, in words."""

    def mode(self) -> GradientMode:
        """The gradient mode with its settings."""
        return GradientMode(self.gradient, self.surrogate_steps, self.surrogate_dt)

    def goal(self, problem: Problem) -> Objective:
        """The classification loss."""
        return objective(self.mode().logits(problem.target), LOSSES[self.loss])

    def draws(self, problem: Problem, i: int) -> range:
        """The draws of iteration ``i``."""
        n = self.eot_iter if has_noise(problem.target, self.gradient) else 1
        return range(i * n, (i + 1) * n)

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_iter

    def eot(self) -> int:
        """See ``Attack.eot``."""
        return self.eot_iter

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return Effort(steps=self.n_iter, draws=self.eot_iter, noisy=self.gradient != "blind")
