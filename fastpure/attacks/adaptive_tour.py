"""One run of `Adaptive`: which stage comes next, what it may cost, what is kept, and when it is enough."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..purify import Target
from .adaptive_stages import (
    CHOOSING,
    MOST_DRAWS,
    Asker,
    Looked,
    look,
    refine,
    search,
    steps_for,
    worse,
)
from .base import Problem, Proposal, Tick
from .budget import Budget
from .gradient import Average, Logits, Query, attack_logits, mean_logits
from .gradient_modes import GradientMode
from .ledger import FORWARD, Ledger
from .relatives import Relative, relatives

LEAST_ITERATIONS, MOST_ITERATIONS = 10, 30
"""Steps of one search."""

REFINING, LEAST_REFINING = 15, 4
"""Steps of one refinement."""

FIRST_LOOK, LOOK = 3, 8
"""Choosing draws on which many candidates are sorted, and on which the best two meet the one that is kept."""

SETTLED = 1.0 / (LOOK + 2)
"""How often an image is still right after it was wrong on all draws of a look: Laplace's rule of succession."""

MOST_CLASSES = 9
"""Classes towards which an image is driven, the most probable first, as in AutoAttack."""

FIRST_SHARE, LATER_SHARE = 0.7, 0.3
"""Of the budget per image that the first stage, and any later one, may take; the first at least what it needs."""


def least(problem: Problem) -> float:
    """Gradients per image that the smallest first stage takes: one search of the cheapest relative, one comparison."""
    relative = relatives(problem.target)[0]
    draws = LOOK if problem.target.is_random else 1
    return (LEAST_ITERATIONS + 1) * relative.cost * relative.draws + FORWARD * draws


@dataclass(eq=False)
class Arm(ABC):
    """A kind of stage. ``times`` counts how often it was played, so that each play begins elsewhere."""

    name: str
    times: int = field(default=0, init=False)
    gain: float = field(default=math.inf, init=False)
    """Share of all images that its last play took off the accuracy, per gradient and image."""

    @abstractmethod
    def play(self, tour: Tour, active: Tensor, allowance: float) -> list[Tensor]:
        """Candidates [n, C, H, W] for the ``active`` images [n], for ``allowance`` gradients each; [] if too few."""


@dataclass(eq=False)
class Search(Arm):
    """Auto-PGD on a relative: on cross entropy, and towards classes."""

    relative: Relative
    untargeted: int = 1
    classes: Sequence[int] = ()

    def play(self, tour: Tour, active: Tensor, allowance: float) -> list[Tensor]:
        """See `Arm.play`."""
        # The last comparison is of two candidates, with what was kept before.
        price = self.relative.cost * self.relative.draws
        kept = allowance - FORWARD * (3 if tour.round else 2) * tour.look_draws
        kept -= 0.0 if tour.knows(self.relative) else FORWARD * price
        extra = FORWARD * tour.first_look
        wanted = [None] * self.untargeted + list(self.classes)
        affordable = int(kept / (price * (LEAST_ITERATIONS + 1) + extra) + 1e-9)
        wanted = wanted[: max(affordable, 0)]
        if not wanted:
            single = steps_for(
                allowance - FORWARD * tour.look_draws - price, price, LEAST_ITERATIONS, MOST_ITERATIONS
            )
            if tour.round or not single:
                return []
            wanted, n_iter = [None], single
        else:
            n_iter = steps_for(kept / len(wanted) - extra - price, price, LEAST_ITERATIONS, MOST_ITERATIONS)
        part, asker = tour.problem.part(active), tour.asker(active, self.relative.cost)
        ranked = tour.ranked(self.relative)[active] if any(k is not None for k in wanted) else None
        logits = attack_logits(self.relative.target)
        return [
            search(
                asker,
                part,
                logits,
                None if k is None or ranked is None else ranked[:, k],
                tour.ball,
                n_iter,
                (tour.draws(), self.relative.draws),
                (tour.seed, tour.begins()),
                tour.certain(self.relative),
            )
            for k in wanted
        ]


@dataclass(eq=False)
class Refine(Arm):
    """Averaged steps from the best point on the defence, differentiated as ``modes`` say one after the other."""

    modes: Sequence[Logits] = ()

    def play(self, tour: Tour, active: Tensor, allowance: float) -> list[Tensor]:
        """See `Arm.play`."""
        allowance -= FORWARD * 2 * tour.look_draws
        n_draws = tour.n_draws[active]
        n_iter = steps_for(allowance, float(n_draws.double().mean()), LEAST_REFINING, REFINING)
        if not n_iter:
            return []

        def logits_at(share: float) -> Logits:
            return self.modes[min(int(share * len(self.modes)), len(self.modes) - 1)]

        found, n_draws = refine(
            tour.asker(active, 1.0),
            tour.problem.part(active),
            logits_at,
            tour.x[active],
            tour.ball,
            n_iter,
            n_draws,
            allowance,
            tour.draws(),
        )
        tour.n_draws[active] = n_draws
        return [found]


@dataclass(eq=False)
class Tour:
    """State of a run; tensors have an entry per image."""

    problem: Problem
    ball: Budget
    per_image: float
    batch_size: int
    seed: int
    eval_draws: int
    tick: Tick

    def __post_init__(self) -> None:
        x = self.problem.x
        self.target: Target = self.problem.target
        self.x, self.ledger, self.agreement = x.clone(), Ledger(x), Average(x)
        self.look_draws = LOOK if self.target.is_random else 1
        self.first_look = FIRST_LOOK if self.target.is_random else 1
        self.n_draws = torch.full_like(self.problem.y, 4 if self.target.is_random else 1)
        self.best = Looked(torch.full_like(self.ledger.spent, torch.nan), self.ledger.spent.new_zeros(len(x)))
        self.measured = torch.ones_like(self.ledger.spent)
        self.wrong, self.looked = torch.zeros_like(self.problem.y), torch.zeros_like(self.problem.y)
        self.flat = torch.ones_like(self.problem.y, dtype=torch.bool)
        self.round, self._begins, self._queries = 0, 0, 0
        self.margins: list[Tensor] = []
        self.gains: list[tuple[float, float]] = []
        self.notes: list[str] = []
        self._ranked: dict[str, Tensor] = {}
        self._price, self._last_price = 0.0, 0.0

    def run(self) -> Proposal:
        """All stages."""
        arms, stopped = self.arms(), ""
        played: list[Arm] = []
        while not stopped:
            active = self.active()
            if not len(active):
                stopped = "every image is broken on all choosing draws"
                break
            arm, candidates = self._play(arms, active)
            if arm is None:
                stopped = "the budget is spent"
                break
            self._choose(active, candidates, played[-1] if played else None)
            played.append(arm)
            if self._enough(arms):
                stopped = "another stage would not move the accuracy by more than the verdict's draws leave uncertain"
        losses = (
            torch.stack(self.margins) if self.margins else self.problem.x.new_empty((0, len(self.problem.x)))
        )
        found = Proposal(self.x, losses, self.flat, agreement=self.agreement.mean)
        return self.ledger.into(replace(found, stopped=stopped, notes=tuple(self.notes)))

    def arms(self) -> list[Arm]:
        """Every kind of stage, in the order in which they are tried."""
        found = relatives(self.target)
        ranks = range(min(MOST_CLASSES, self.problem.n_classes - 1)) if self.problem.n_classes > 2 else ()
        refining = self._refining()
        if found[0].target is self.target and not self.target.is_random:
            # What is broken is broken: one search after the other, each for what the others have left.
            single: list[Arm] = [Search("search", found[0])]
            single += [Search(f"search class {k}", found[0], 0, (k,)) for k in ranks]
            return [*single, *refining]
        searching: list[Arm] = [Search(f"search {one.name}", one, 1, ranks) for one in found]
        woven: list[Arm] = []
        for i in range(max(len(searching), len(refining))):
            woven += searching[i : i + 1] + refining[i : i + 1]
        return woven

    def _refining(self) -> list[Arm]:
        target = self.target
        exact = attack_logits(target)
        if not target.purifies or target.method.guidance is None:
            return [Refine("refine", (exact,))]
        weaker: list[Logits] = []
        for name in ("unguided", "detached"):
            try:
                weaker.append(GradientMode(name).logits(target))
            except ValueError as error:
                self.notes.append(f"the gradient mode {name} is left out: {error}")
        found: list[Arm] = (
            [Refine("refine, guidance left out, then constant", tuple(weaker))] if weaker else []
        )
        if len(weaker) == 2:
            found.append(Refine("refine, guidance constant", weaker[1:]))
        return [*found, Refine("refine, exact", (exact,))]

    def active(self) -> Tensor:
        """Images that are not settled, by index."""
        settled = (self.looked >= self.look_draws) & (self.wrong == self.looked)
        return (~settled).nonzero()[:, 0]

    def left(self, active: Tensor) -> float:
        """Gradients that each active image may still take."""
        return (self.per_image * len(self.problem.x) - total(self.ledger.spent)) / len(active)

    def _play(self, arms: list[Arm], active: Tensor) -> tuple[Arm | None, list[Tensor]]:
        untried = [arm for arm in arms if not arm.times]
        order = untried + sorted((arm for arm in arms if arm.times), key=lambda arm: -arm.gain)
        left = self.left(active)
        share = LATER_SHARE if self.round else FIRST_SHARE
        allowance = min(left, max(share * self.per_image, least(self.problem)))
        # What a stage's share does not pay, all that is left may.
        for limit, arm in ((limit, arm) for limit in sorted({allowance, left}) for arm in order):
            before = total(self.ledger.spent)
            candidates = arm.play(self, active, limit)
            if candidates:
                arm.times += 1
                self._price = (total(self.ledger.spent) - before) / len(self.problem.x)
                return arm, candidates
        return None, []

    def _choose(self, active: Tensor, candidates: list[Tensor], before: Arm | None) -> None:
        """Keep for each active image what fares worst on draws that nobody has seen."""
        part, first = self.problem.part(active), CHOOSING + 32 * self.round
        candidates = [self.ball.project(candidate, part.x) for candidate in candidates]
        if len(candidates) > 1:
            candidates = self._finalists(part, active, candidates, first)
        draws = range(first + LOOK, first + 2 * LOOK)
        if self.round:
            kept = self._look(part, active, self.x[active], draws)
            self._measure(active, kept, before)
            n = self.look_draws
            self.wrong[active] += ((1.0 - kept.correct) * n).round().long()
            self.looked[active] += n
        else:
            nobody = torch.full_like(self.ledger.spent[active], torch.inf)
            kept = Looked(nobody, -nobody)
        for candidate in candidates:
            seen = self._look(part, active, candidate, draws)
            better = worse(seen, kept)
            where = active[better]
            self.x[where] = candidate[better]
            n = self.look_draws
            self.wrong[where] = ((1.0 - seen.correct[better]) * n).round().long()
            self.looked[where] = n
            kept = Looked(
                torch.where(better, seen.correct, kept.correct), torch.where(better, seen.margin, kept.margin)
            )
        self.ledger.note(kept.correct, active)
        wide = torch.full_like(self.measured, torch.nan, dtype=torch.float32)
        wide[active] = kept.margin.float()
        self.margins.append(wide)
        self.round += 1

    def _finalists(self, part: Problem, active: Tensor, candidates: list[Tensor], first: int) -> list[Tensor]:
        draws = range(first, first + FIRST_LOOK)
        looks = [self._look(part, active, candidate, draws) for candidate in candidates]
        # Margins only break ties: a hundredth of a draw apart at most.
        margins = torch.stack([seen.margin for seen in looks])
        largest = margins.abs().amax(0).clamp_min(torch.finfo(margins.dtype).tiny)
        rank = torch.stack([seen.correct for seen in looks]) - 0.01 * torch.tanh(margins / largest)
        order, image = rank.sort(dim=0, stable=True).indices, torch.arange(len(active), device=part.x.device)
        stacked = torch.stack(candidates)
        return [stacked[order[k], image] for k in range(min(2, len(candidates)))]

    def _measure(self, active: Tensor, kept: Looked, before: Arm | None) -> None:
        """What the stage before has gained, from draws that had no part in choosing its result."""
        n, gained = len(self.problem.x), self.measured[active] - kept.correct
        # Who has been settled since has not been looked at again: the posterior mean after as many wrong draws.
        gone = torch.ones_like(self.problem.y, dtype=torch.bool)
        gone[active] = False
        gone &= self.measured > SETTLED
        lost = total(self.measured[gone] - SETTLED)
        self.measured[gone] = SETTLED
        spread = total(kept.correct * (1.0 - kept.correct)) / max(self.look_draws - 1, 1)
        gain = (total(gained) + lost) / n
        if self.round > 1:
            self.gains.append((gain, 2.0 * spread / n**2))
            if before is not None:
                before.gain = gain / max(self._last_price, 1e-9)
        self.measured[active] = kept.correct
        self._last_price = self._price

    def _enough(self, arms: list[Arm]) -> bool:
        """Whether another stage's gain is below what the verdict's draws leave uncertain, by the last two."""
        if not self.target.is_random or len(self.gains) < 2 or any(not arm.times for arm in arms):
            return False
        n, p = len(self.problem.x), self.measured
        uncertain = 1.96 * math.sqrt(total(p * (1.0 - p)) / self.eval_draws) / n
        mean = sum(gain for gain, _ in self.gains[-2:]) / 2
        error = math.sqrt(sum(variance for _, variance in self.gains[-2:])) / 2
        return mean + 1.645 * error < uncertain

    def _look(self, part: Problem, active: Tensor, x: Tensor, draws: range) -> Looked:
        self.ledger.charge(FORWARD * (len(draws) if self.target.is_random else 1), active)
        return look(self.target, part, x, draws, self.batch_size)

    def asker(self, active: Tensor, cost: float) -> Asker:
        """Asks for gradients that cost ``cost`` each, for the ``active`` images."""

        def note(which: Tensor, n: int, found: Query) -> None:
            images = active[which]
            self.ledger.charge(cost * n, images)
            self.agreement.add(found.agreement, images)
            self.flat[images] &= ~torch.any(found.gradient.flatten(1) != 0, dim=1) & (found.correct > 0)
            spent = float(self.ledger.spent.mean())
            self.tick(
                min(int(spent), int(self.per_image) - 1), float(found.loss.mean()) if len(which) else 0.0
            )

        return Asker(self.batch_size, note)

    def ranked(self, relative: Relative) -> Tensor:
        """Wrong classes by falling mean logit of ``relative`` at the originals, int64 [B, classes - 1]."""
        if relative.name not in self._ranked:
            n = relative.draws
            logits = attack_logits(relative.target)
            outputs = mean_logits(logits, self.problem.x, self.problem.ids, range(n), self.batch_size)
            self.ledger.charge(FORWARD * relative.cost * n)
            order = (
                outputs.scatter(1, self.problem.y[:, None], -torch.inf)
                .sort(dim=1, descending=True, stable=True)
                .indices
            )
            self._ranked[relative.name] = order[:, :-1]
        return self._ranked[relative.name]

    def knows(self, relative: Relative) -> bool:
        """Whether `ranked` has been asked for it."""
        return relative.name in self._ranked

    def certain(self, relative: Relative) -> bool:
        """Whether what is misclassified there is broken for good."""
        return relative.target is self.target and not self.target.is_random

    def draws(self) -> int:
        """The number of the first draw of a stage's gradients, which no other stage has."""
        self._queries += 1
        return (self._queries - 1) * (MOST_ITERATIONS + 1) * MOST_DRAWS

    def begins(self) -> int:
        """A new number for each random start."""
        self._begins += 1
        return self._begins - 1


def total(values: Tensor) -> float:
    """Their exact sum, rounded once: nothing that is decided may depend on the order of the images."""
    return math.fsum(values.tolist())
