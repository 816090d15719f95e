"""The adaptive attack: one budget, nothing to tune, stronger than each of the attacks it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from ..errors import mistake, positive
from .adaptive_stages import MOST_DRAWS
from .adaptive_tour import LEAST_ITERATIONS, Tour, least
from .base import Count, NormAttack, Problem, Proposal, Tick
from .budget import Budget
from .weakness import Effort

DEFAULT_BUDGET = 400.0
"""Gradients per image; APGD with 40 iterations and 8 draws takes 328, AutoAttack's "rand" 4,040."""


@final
@dataclass(frozen=True, kw_only=True)
class Adaptive(NormAttack):
    """An attack on any defence, random or not, purifying or not, with a budget instead of settings.

    It derives cheap relatives of the defence (the denoiser in one step, not guided, of an image that is not diffused)
    and asks the defence which of them know its gradient; searches these from several starts and towards every class;
    compares what was found on attack draws of the defence kept for that; and refines the best, through one step from
    the diffused image where that is calmer, and on the defence with the gradient modes there are: guidance left out,
    constant, exact. Draws per gradient are doubled where two halves of them disagree and halved where they
    agree. Images that are broken on every choosing draw leave their budget to the others. It ends when another stage
    would not move the accuracy by more than the verdict's own draws leave uncertain, when every image is broken, or
    when the budget is spent: ``AttackResult.stopped`` says which.

    The images of one call, in `evaluate` those of one block, share the budget: what comes out for one of them depends
    on the others. A run's identity therefore holds the block's size.

    Attributes:
        budget: gradients of the deployed defence per image, on average: a draw forward and backward is one, a forward
            pass a half, a cheaper gradient its share of the network passes.
        norm, eps: the ball, ``admissible``.
    """

    shares: ClassVar[bool] = True

    gradient: ClassVar[str] = "exact"  # type: ignore[misc]

    budget: float = DEFAULT_BUDGET  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        # 40 and 40.0 are one budget, and one run.
        object.__setattr__(self, "budget", float(positive("budget", self.budget)))
        if self.budget < LEAST_ITERATIONS:
            remedy = f"{DEFAULT_BUDGET:g} is the default"
            raise ValueError(
                mistake("budget", f"at least {LEAST_ITERATIONS} gradients per image", self.budget, remedy)
            )

    @property
    def admissible(self) -> Budget:
        """The ball in which the adversarial images lie."""
        return Budget(self.norm, self.eps)

    def iterations(self) -> int:
        """See ``Attack.iterations``; here a tick is a gradient spent per image."""
        return int(self.budget)

    def eot(self) -> int:
        """See ``Attack.eot``; most draws of a refinement's gradient."""
        return MOST_DRAWS

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return Effort(steps=int(self.budget), draws=0, remedy="raise budget")

    def planned(self, random: bool, n_classes: int, count: Count) -> tuple[float, float]:
        """See ``Attack.planned``; answers without gradient are paid from the budget too."""
        return self.budget, 0.0

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The candidate of each image that fared worst on choosing draws.

        Raises:
            ValueError: the budget does not pay a first stage, or the defence has no gradient.
        """
        if not len(problem.x):
            return Proposal(problem.x, problem.x.new_empty((0, 0)))
        needed = least(problem)
        if self.budget < needed:
            expected = f"at least {math.ceil(100 * needed) / 100:g} gradients per image for this defence"
            raise ValueError(mistake("budget", expected, f"{self.budget:g}"))
        return Tour(
            problem, self.admissible, self.budget, self.batch_size, self.seed, self.eval_draws, tick
        ).run()
