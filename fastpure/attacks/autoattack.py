"""AutoAttack as an ensemble whose decisions can be trusted for random defences too.

The published ensemble gives an image up on one misclassified draw, so that images fail by chance: with clean error
p per draw, 1 - (1 - p)^2 of them after two attacks. Here (``decision="fresh"``) a candidate is judged on
``decision_draws`` evaluation draws the attacks have not seen, the one with the fewest correct draws is kept, and
an image is given up only when no draw is correct. The kept candidate is then scored on yet other draws, so that
choosing the minimum of noisy scores does not lower the number that is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import mistake, one_of, whole
from .apgd import APGDCE, APGDDLR, APGDT
from .base import Count, NormAttack, Problem, Proposal, Tick
from .choosing import choose, effort_of, planned_choice, share_correct
from .gradient_modes import GradientMode
from .pyautoattack import FAB, Square
from .weakness import Effort

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab", "square"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""Members of the published versions, in their order; "standard" is meant for deterministic defences."""

MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "square")
LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
"""How many classes the loss of a member needs, where that is more than two."""

DECISIONS = ("fresh", "legacy")


@dataclass(frozen=True, kw_only=True)
class AutoAttack(NormAttack):
    """The ensemble of Croce and Hein (ICML 2020). Members whose loss needs more classes than there are are left out.

    Attributes:
        version: "standard", "rand", or "custom" with ``attacks``.
        attacks: members for "custom", in order.
        n_iter: iterations of APGD and FAB.
        eot_iter: draws per gradient or query; if None 20 for "rand" and 1 otherwise, as published.
        n_restarts: of the APGD members.
        n_target_classes: of the targeted members.
        n_queries: of Square.
        gradient: gradient mode of the APGD members; ``surrogate_steps`` and ``surrogate_dt`` as in PGD.
        decision: "fresh" as above, or "legacy": an image is given up on one misclassified draw, and the result is
            that verdict, as in the published code; for comparison with published numbers only.
        decision_draws: evaluation draws that choose between candidates.
    """

    version: str = "standard"
    attacks: tuple[str, ...] = field(default=())
    n_iter: int = 100
    eot_iter: int | None = None
    n_restarts: int = 1
    n_target_classes: int = 9
    n_queries: int = 5000
    gradient: str = "exact"
    surrogate_steps: int | None = None
    surrogate_dt: float | None = None
    decision: str = "fresh"
    decision_draws: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("version", self.version, (*VERSIONS, "custom"))
        one_of("decision", self.decision, DECISIONS)
        whole("decision_draws", self.decision_draws, minimum=1)
        object.__setattr__(self, "attacks", tuple(self.attacks))
        if (self.version == "custom") != bool(self.attacks):
            expected = "a list of attacks with version='custom', and empty otherwise"
            raise ValueError(mistake("attacks", expected, f"{self.attacks} with version={self.version!r}"))
        GradientMode(self.gradient, self.surrogate_steps, self.surrogate_dt)
        self.members()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all members, in order."""
        return self.attacks or VERSIONS[self.version]

    def members(self, n_classes: int = 0) -> list[NormAttack]:
        """The attacks of the ensemble with their settings, in order; those that exist for ``n_classes`` if known.

        Raises:
            ValueError: none does.
        """
        names = [one_of("attacks", name, MEMBERS) for name in self.names]
        if n_classes:
            names = [name for name in names if LEAST_CLASSES.get(name, 2) <= n_classes]
            if not names:
                there = ", ".join(name for name in MEMBERS if LEAST_CLASSES.get(name, 2) <= n_classes)
                raise ValueError(
                    mistake("attacks", f"some that exist for {n_classes} classes: {there}", self.names)
                )
        return [self._member(name) for name in names]

    def iterations(self) -> int:
        """See ``Attack.iterations``; those of all members."""
        return sum(member.iterations() for member in self.members())

    def eot(self) -> int:
        """See ``Attack.eot``."""
        return max(member.eot() for member in self.members())

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``; that of the member which spends most, because the best of them counts."""
        left_out = [
            f"{name} is left out: its loss needs {least} classes, and there are {n_classes}"
            for name, least in LEAST_CLASSES.items()
            if name in self.names and 0 < n_classes < least
        ]
        return effort_of(self.members(n_classes), n_classes, left_out)

    def spoken_for(self) -> int:
        """See ``Attack.spoken_for``."""
        looks = len(self.names) + 1 if self.decision == "legacy" else self.decision_draws
        return self.eval_draws + looks

    def planned(self, random: bool, n_classes: int, count: Count) -> tuple[float, float]:
        """See ``Attack.planned``; the members', and the comparison of their candidates and of the images themselves."""
        draws = self.decision_draws if random and self.decision != "legacy" else 1
        return planned_choice(self.members(n_classes), draws, count)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The candidate of each image that is correct on the fewest decision draws."""
        draws = 1 if self.decision == "legacy" else self.decision_draws
        chosen = choose(problem, self.members(problem.n_classes), self._share_correct, draws, tick)
        flat = torch.zeros_like(problem.y, dtype=torch.bool)
        for number, images, zero in chosen.flat:
            if number == 1:
                flat[images] = zero
        verdict = (chosen.correct > 0)[:, None] if self.decision == "legacy" else None
        return chosen.counted(Proposal(chosen.x, chosen.losses, flat, verdict, chosen.agreement))

    def _share_correct(self, problem: Problem, x: Tensor, number: int) -> Tensor:
        # The final score takes draws 0 to eval_draws - 1; a choice made on them would flatter the attack.
        first, n = self.eval_draws, self.decision_draws
        if self.decision == "legacy":
            first, n = self.eval_draws + number, 1
        return share_correct(problem, x, first, n, self.batch_size)

    def _member(self, name: str) -> NormAttack:
        common = {name: getattr(self, name) for name in ("norm", "eps", "eval_draws", "batch_size", "seed")}
        eot = self.eot_iter if self.eot_iter is not None else (20 if self.version == "rand" else 1)
        if name == "square":
            return Square(**common, n_queries=self.n_queries, eot_iter=eot)
        if name == "fab":
            return FAB(**common, n_iter=self.n_iter, n_target_classes=self.n_target_classes, eot_iter=eot)
        common |= {
            "n_iter": self.n_iter,
            "eot_iter": eot,
            "n_restarts": self.n_restarts,
            "gradient": self.gradient,
            "surrogate_steps": self.surrogate_steps,
            "surrogate_dt": self.surrogate_dt,
        }
        if name == "apgd-t":
            return APGDT(**common, n_target_classes=self.n_target_classes)
        return APGDCE(**common) if name == "apgd-ce" else APGDDLR(**common)
