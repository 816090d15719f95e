"""One run of `Adaptive`: which stage comes next, what it may cost, what is kept, and when it is enough."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..purify import Target
from .adaptive_gains import Gains
from .adaptive_stages import (
    CHOOSING,
    FEWEST_DRAWS,
    Asker,
    Looked,
    look,
    refine,
    search,
    steps_for,
)
from .base import Problem, Proposal, Tick
from .budget import Budget
from .diffhammer import Hammer
from .diffhammer import cost as hammer_cost
from .gradient import Average, Logits, Query, attack_logits, mean_logits
from .gradient_modes import GradientMode
from .ledger import FORWARD, Ledger, total
from .losses import margin
from .relatives import Relative, calmer, itself, meet, relatives, sorter
from .targets import others_by_logit

LEAST_ITERATIONS, MOST_ITERATIONS = 10, 30
"""Steps of one search."""

LEAST_REFINING, FIRST_DRAWS = 8, 8
"""Fewest steps of a refinement, at the draws it begins with; draws per gradient of the first one."""

SETTLED, SETTLED_ON = 2.0, 24
"""An image is settled that is wrong on all of so many draws, with a mean margin of this many standard deviations. Of
those that were wrong on eight, one draw in twenty is right."""

STAGE_DRAWS = 1 << 14
"""Draws of one stage's gradients at most: the next stage's begin behind them."""

FIRST_LOOK, LOOK, STRIDE = 6, 8, 48
"""Choosing draws on which many candidates are sorted (half as many where they are dear), on which the best two meet
what was kept, and all of a stage."""

MOST_CLASSES = 9
"""Classes towards which an image is driven, the most probable first, as in AutoAttack."""

FIRST_SHARE, LATER_SHARE, SMALL_STAGE, LARGE_STAGE = 0.7, 0.3, 40.0, 128.0
"""Of the budget per image that the first stage, and any later one, may take; a later one between so many gradients, if
there are as many left: less refines little, and more would rather be two."""

SMALLEST_STAGE = 20.0
"""Gradients per image that are worth keeping for a second stage: images that the first has broken leave theirs."""

MET_FROM, MET_DRAWS = 30.0, 2
"""Gradients per image from which on it is worth asking the defence, on so many draws, which relatives know its own."""


def least(problem: Problem) -> float:
    """Gradients per image that the smallest first stage takes: one search of the cheapest relative, one comparison."""
    relative = relatives(problem.target)[0]
    draws = LOOK if problem.target.is_random else 1
    return (LEAST_ITERATIONS + 1) * relative.cost * relative.draws + FORWARD * draws


@dataclass(frozen=True)
class Goal:
    """What a search is after.

    Attributes:
        relative: what is searched.
        rank: of the class that images are driven towards, 0 the most probable; None for any class.
    """

    relative: Relative
    rank: int | None = None


@dataclass(eq=False)
class Arm(ABC):
    """A kind of stage. ``times`` counts how often it was played."""

    name: str
    kind: ClassVar[str] = "refine"
    reserve: bool = field(default=False, kw_only=True)
    """Whether it is tried only when the others gain nothing any more."""
    times: int = field(default=0, init=False)

    @abstractmethod
    def play(self, tour: Tour, active: Tensor, allowance: float, whole: bool) -> list[Tensor]:
        """Candidates [n, C, H, W] for the ``active`` images [n], for ``allowance`` gradients each; [] if too few.

        ``whole``: too few are those that pay a part of the stage only.
        """


@dataclass(eq=False)
class Search(Arm):
    """Auto-PGD on relatives of one price: on cross entropy, and towards classes."""

    kind: ClassVar[str] = "search"
    goals: Sequence[Goal]
    """What is searched, the most promising first; those that one play cannot pay are the next one's first."""
    enough: int = 1
    """Goals that a stage's share of the budget must pay: with fewer it rather waits for a larger one."""
    _next: int = field(default=0, init=False)

    def play(self, tour: Tour, active: Tensor, allowance: float, whole: bool) -> list[Tensor]:
        """See `Arm.play`."""
        # The last comparisons are of two candidates with what was kept before, and of the better once more.
        price = self.goals[0].relative.cost * self.goals[0].relative.draws
        kept = allowance - FORWARD * (4 if tour.round else 2) * tour.look_draws
        unknown = {goal.relative.name for goal in self.goals if not tour.knows(goal.relative)}
        kept -= FORWARD * price * len(unknown)
        extra = FORWARD * tour.sorter.cost * tour.first_look
        first = self._next % len(self.goals)
        # The first search, of one goal, says how well it carries over.
        wanted = [*self.goals[first:], *self.goals[:first]] if tour.round else list(self.goals[:1])
        affordable = max(int(kept / (price * (LEAST_ITERATIONS + 1) + extra) + 1e-9), 0)
        if whole and affordable < min(self.enough, len(wanted)):
            return []
        wanted = wanted[:affordable]
        if not wanted:
            kept = allowance - FORWARD * tour.look_draws - price
            single = steps_for(kept, price, LEAST_ITERATIONS, MOST_ITERATIONS)
            if tour.round or not single:
                return []
            wanted, n_iter = list(self.goals[:1]), single
        else:
            n_iter = steps_for(kept / len(wanted) - extra - price, price, LEAST_ITERATIONS, MOST_ITERATIONS)
        self._next += len(wanted)
        return [self._reached(goal, tour, active, n_iter) for goal in wanted]

    def _reached(self, goal: Goal, tour: Tour, active: Tensor, n_iter: int) -> Tensor:
        relative = goal.relative
        return search(
            tour.asker(active, relative.cost),
            tour.problem.part(active),
            attack_logits(relative.target),
            None if goal.rank is None else tour.ranked(relative, active)[:, goal.rank],
            tour.ball,
            n_iter,
            (tour.draws(), relative.draws),
            (tour.seed, tour.begins()),
            tour.certain(relative),
        )


@dataclass(eq=False)
class Refine(Arm):
    """Averaged steps from the best point, differentiated as ``modes`` say one after the other.

    A mode is logits and what one draw's gradient of them costs, in gradients of the defence.
    """

    modes: Sequence[tuple[Logits, float]] = ()
    _n_draws: Tensor | None = field(default=None, init=False)

    def play(self, tour: Tour, active: Tensor, allowance: float, whole: bool) -> list[Tensor]:
        """See `Arm.play`."""
        dearest = max(cost for _, cost in self.modes)
        allowance = min((allowance - FORWARD * 3 * tour.look_draws) / dearest, float(STAGE_DRAWS))
        most = int(allowance / LEAST_REFINING)
        if most < 1 or (most < FEWEST_DRAWS and tour.target.is_random):
            return []
        if self._n_draws is None:
            self._n_draws = torch.full_like(tour.problem.y, FIRST_DRAWS if tour.target.is_random else 1)
        # A power of two as the halves are compared; fewer of them rather than a handful of steps.
        n_draws = self._n_draws[active].clamp_max(2 ** int(math.log2(most)))
        found, self._n_draws[active] = refine(
            [tour.asker(active, cost) for _, cost in self.modes],
            tour.problem.part(active),
            [logits for logits, _ in self.modes],
            tour.x[active],
            tour.ball,
            n_draws,
            allowance,
            tour.draws(),
        )
        return [found]


@dataclass(eq=False)
class Hammered(Arm):
    """DiffHammer's directions from the best point, on the margin."""

    kind: ClassVar[str] = "hammer"

    def play(self, tour: Tour, active: Tensor, allowance: float, whole: bool) -> list[Tensor]:
        """See `Arm.play`."""
        n = tour.look_draws
        price = hammer_cost(n)
        n_iter = steps_for(allowance - FORWARD * 3 * n - price, price, LEAST_REFINING, MOST_ITERATIONS)
        if not n_iter:
            return []
        part, ball = tour.problem.part(active), tour.ball
        hammer = Hammer(part, margin, ball.norm, ball.eps, n, tour.batch_size, tour.draws())
        found = hammer.run(tour.x[active], n_iter, lambda i, loss: tour.tell(loss))
        tour.ledger.charge(price * (n_iter + 1), active)
        return [found.best]


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
        self.sorter = sorter(self.target)
        cheap = FIRST_LOOK if self.sorter.cost <= FORWARD else FIRST_LOOK // 2
        self.first_look = cheap if self.target.is_random else 1
        self.seen = Looked.none(len(x), x.device)
        self.gains = Gains(torch.ones_like(self.ledger.spent), self.look_draws, self.eval_draws)
        self.flat = torch.ones_like(self.problem.y, dtype=torch.bool)
        self.calm, self.round, self._begins, self._queries = False, 0, 0, 0
        self.margins: list[Tensor] = []
        self.notes: list[str] = []
        self._ranked: dict[str, Tensor] = {}
        self._price, self._last_price = 0.0, 0.0

    def run(self) -> Proposal:
        """All stages."""
        arms, stopped = self.arms(), ""
        last: Arm | None = None
        while not stopped:
            active = self.active()
            if not len(active):
                stopped = "every image is broken on all choosing draws"
                break
            tried = all(arm.times for arm in arms)
            arm, candidates = self._play(arms, active)
            if arm is None:
                stopped = "the budget is spent, or pays no further stage"
                break
            self._choose(active, candidates, last)
            last = arm
            # What was played just now is measured at the next look only.
            if tried and self.target.is_random and self.gains.saturated:
                stopped = "another stage would not move the accuracy by more than the verdict's draws leave uncertain"
        none = self.problem.x.new_empty((0, len(self.problem.x)))
        losses = torch.stack(self.margins) if self.margins else none
        found = Proposal(self.x, losses, self.flat, agreement=self.agreement.mean)
        return self.ledger.into(replace(found, stopped=stopped, notes=tuple(self.notes)))

    def arms(self) -> list[Arm]:
        """Every kind of stage, in the order in which they are tried."""
        found, ranks = relatives(self.target), self._ranks()
        if found[0].target is self.target and not self.target.is_random:
            # What is broken is broken: one search after the other, each for what the others have left.
            single: list[Arm] = [Search("search", (Goal(found[0]),))]
            single += [Search(f"search class {k}", (Goal(found[0], k),)) for k in ranks]
            return [*single, *self._refining(None)]
        groups, calm = self._meet(found, calmer(self.target))
        self.calm, refining = calm is not None, self._refining(calm)
        if not self.target.is_random:  # a purifier whose noise is held: what breaks it once has broken it
            groups = [*groups, (itself(self.target),)]
        searching: list[Arm] = []
        for group in groups:
            goals = [Goal(one, rank) for one in group for rank in (None, *ranks)]
            names = ", ".join(one.name for one in group)
            searching.append(Search(f"search {names}", goals, 1 + len(ranks)))
        woven: list[Arm] = []
        for i in range(max(len(searching), len(refining))):
            woven += searching[i : i + 1] + refining[i : i + 1]
        return woven

    def _ranks(self) -> Sequence[int]:
        return range(min(MOST_CLASSES, self.problem.n_classes - 1)) if self.problem.n_classes > 2 else ()

    def _weaker(self) -> list[tuple[Logits, float]]:
        """The defence without its guidance, and with its guidance constant, with costs; nothing where it has none."""
        if not self.target.purifies or self.target.method.guidance is None:
            return []
        weaker: list[tuple[Logits, float]] = []
        for name in ("unguided", "detached"):
            try:
                mode = GradientMode(name)
                weaker.append((mode.logits(self.target), mode.cost(self.target)))
            except ValueError as error:
                self.notes.append(f"the gradient mode {name} is left out: {error}")
        return weaker

    def _meet(
        self, found: tuple[Relative, ...], calm: Relative | None
    ) -> tuple[list[tuple[Relative, ...]], Relative | None]:
        """See `relatives.meet`; as they stand where the budget is small or nothing is random."""
        choice = len(found) > 1 or calm is not None
        if self.per_image < MET_FROM or not (choice and self.target.is_random):
            return [(one,) for one in found], calm
        everyone = torch.arange(len(self.problem.x), device=self.problem.x.device)
        weaker = self._weaker() or [(attack_logits(self.target), 1.0)]
        return meet(
            self.problem,
            found,
            calm,
            weaker[0],
            weaker[1][0] if len(weaker) == 2 else None,
            (self.draws(), MET_DRAWS),
            self.batch_size,
            lambda cost: self.ledger.charge(cost, everyone),
        )

    def _refining(self, calm: Relative | None) -> list[Arm]:
        target, weaker = self.target, self._weaker()
        exact, found = attack_logits(target), list[Arm]()
        if calm is not None:
            found.append(Refine(f"refine, {calm.name}", ((attack_logits(calm.target), calm.cost),)))
        if len(weaker) == 2:
            found.append(Refine("refine, guidance left out, then constant", tuple(weaker)))
        found += [Refine("refine, guidance weaker", (mode,)) for mode in weaker[-1:]]
        # Where nothing is random no stage can be known to gain nothing any more: then exact takes its turn.
        found.append(Refine("refine, exact", ((exact, 1.0),), reserve=bool(weaker) and target.is_random))
        if target.purifies and target.is_random and self.ball.norm != "L1":
            found.append(Hammered("hammer", reserve=True))
        return found

    def active(self) -> Tensor:
        """Images that are not settled, by index."""
        sure = self.seen.ratio > SETTLED if self.target.is_random else self.seen.draws > 0
        enough = self.seen.draws >= (SETTLED_ON if self.target.is_random else 1)
        return (~(enough & (self.seen.correct == 0) & sure)).nonzero()[:, 0]

    def left(self, active: Tensor) -> float:
        """Gradients that each active image may still take."""
        return (self.per_image * len(self.problem.x) - total(self.ledger.spent)) / len(active)

    def _play(self, arms: list[Arm], active: Tensor) -> tuple[Arm | None, list[Tensor]]:
        order = self._order(arms)
        left = self.left(active)
        if self.round:
            share = min(max(LATER_SHARE * self.per_image, SMALL_STAGE), LARGE_STAGE)
        else:
            rest = (1.0 - FIRST_SHARE) * self.per_image
            share = self.per_image if rest < SMALLEST_STAGE else FIRST_SHARE * self.per_image
        allowance = min(left, share)
        if left - allowance < SMALLEST_STAGE:
            allowance = left
        # What a stage's share does not pay, all that is left may, if need be a part of a stage. Right after the first
        # search nobody knows whether searching pays: a part of another must not take what a refinement needs.
        turns = [(allowance, allowance < left), (left, False)]
        turns = [(left, True), *turns] if self.round == 1 and allowance == left else turns
        for (limit, whole), arm in ((turn, arm) for turn in turns for arm in order):
            before = total(self.ledger.spent)
            candidates = arm.play(self, active, limit, whole)
            if candidates:
                # The first search is of one goal only: unless something calmer waits, the same arm goes on.
                arm.times += 1 if self.round or self.calm else 0
                if self.round:
                    self.gains.kinds.setdefault(arm.kind, 0.0)  # until it is known, at the next look
                self._price = (total(self.ledger.spent) - before) / len(self.problem.x)
                return arm, candidates
        return None, []

    def _order(self, arms: list[Arm]) -> list[Arm]:
        """The arms, what is to be played first: the kind that last gained most for what it cost, its arms in turns.

        Arms in reserve come when nothing else gains any more.
        """
        # Who has not been measured goes first; the arms stand in the order in which kinds take turns.
        ready = sorted(
            (arm for arm in arms if not arm.reserve),
            key=lambda arm: (-self.gains.kinds.get(arm.kind, math.inf), arm.times),
        )
        tried = sorted((arm for arm in arms if arm.reserve and arm.times), key=lambda arm: arm.times)
        waiting = [arm for arm in arms if arm.reserve and not arm.times]
        done = self.target.is_random and self.gains.saturated
        return [*waiting, *ready, *tried] if done else [*ready, *waiting, *tried]

    def _choose(self, active: Tensor, candidates: list[Tensor], before: Arm | None) -> None:
        """Keep for each active image what fares worst.

        Many candidates are sorted on a few draws; the best two meet on others; and what seems worse than what was kept
        so far replaces it only if it still does on draws that had no part in saying so.
        """
        part, first = self.problem.part(active), CHOOSING + STRIDE * self.round
        candidates = [self.ball.project(candidate, part.x) for candidate in candidates]
        if len(candidates) > 1:
            candidates = self._finalists(part, active, candidates, first)
        draws, fresh = (range(first + k * LOOK, first + (k + 1) * LOOK) for k in (1, 2))
        best, seen = candidates[0], self._look(part, active, candidates[0], draws)
        for candidate in candidates[1:]:
            other = self._look(part, active, candidate, draws)
            better = (other.value < seen.value).nonzero()[:, 0]
            best = best.index_put((better,), candidate[better])
            seen = seen.put(better, other.at(better))
        wins = torch.ones_like(part.y, dtype=torch.bool)
        if self.round:
            kept = self._look(part, active, self.x[active], draws)
            counted = before.kind if before is not None and self.round > 1 else None
            self.gains.measure(active, kept.rate, self.seen.value, counted, self._last_price)
            self._last_price = self._price
            self.seen = self.seen.put(active, self.seen.at(active) + kept)
            known = self.seen.at(active).value
            wins = seen.value < known
            if self.target.is_random and bool(wins.any()):
                some = wins.nonzero()[:, 0]
                again = self._look(part.part(some), active[some], best[some], fresh)
                seen, wins = seen.put(some, again), wins.index_put((some,), again.value < known[some])
        where = active[wins]
        self.x[where], self.seen = best[wins], self.seen.put(where, seen.at(wins))
        self.ledger.note(self.seen.at(active).rate, active)
        wide = torch.full_like(self.ledger.spent, torch.nan, dtype=torch.float32)
        wide[active] = self.seen.at(active).margin.float()
        self.margins.append(wide)
        self._settle(first + 3 * LOOK)
        self.round += 1

    def _settle(self, first: int) -> None:
        """Look again at what was wrong on every draw so far, while that is cheaper than to attack it further."""
        if not self.target.is_random:
            return
        active = self.active()
        likely = (self.seen.correct == 0) & (self.seen.ratio > SETTLED) & (self.seen.draws > 0)
        some = active[likely[active]]
        n = SETTLED_ON - LOOK
        if len(some) and self.left(active) * len(active) >= FORWARD * n * len(some):
            again = self._look(self.problem.part(some), some, self.x[some], range(first, first + n))
            self.seen = self.seen.put(some, self.seen.at(some) + again)

    def _finalists(self, part: Problem, active: Tensor, candidates: list[Tensor], first: int) -> list[Tensor]:
        draws = range(first, first + self.first_look)
        seen = [self._look(part, active, candidate, draws, self.sorter) for candidate in candidates]
        values = torch.stack([one.value for one in seen])
        order, stacked = values.sort(dim=0, stable=True).indices, torch.stack(candidates)
        image = torch.arange(len(active), device=part.x.device)
        return [stacked[order[k], image] for k in range(2)]

    def _look(
        self, part: Problem, active: Tensor, x: Tensor, draws: range, at: Relative | None = None
    ) -> Looked:
        at = itself(self.target) if at is None else at
        self.ledger.charge(FORWARD * at.cost * (len(draws) if at.target.is_random else 1), active)
        return look(at.target, part, x, draws, self.batch_size)

    def asker(self, active: Tensor, cost: float) -> Asker:
        """Asks for gradients that cost ``cost`` each, for the ``active`` images."""

        def note(which: Tensor, n: int, found: Query) -> None:
            images = active[which]
            self.ledger.charge(cost * n, images)
            self.agreement.add(found.agreement, images)
            self.flat[images] &= ~torch.any(found.gradient.flatten(1) != 0, dim=1) & (found.correct > 0)
            self.tell(float(found.loss.mean()) if len(which) else 0.0)

        return Asker(self.batch_size, note)

    def tell(self, loss: float) -> None:
        """Say how far it is: a tick is a gradient per image."""
        self.tick(min(int(float(self.ledger.spent.mean())), int(self.per_image) - 1), loss)

    def ranked(self, relative: Relative, active: Tensor) -> Tensor:
        """Wrong classes of the ``active`` images [n] by falling mean logit of ``relative``, int64 [n, classes - 1]."""
        if relative.name not in self._ranked:
            # Images only ever leave, so that whoever asks later is among these.
            part, n = self.problem.part(active), relative.draws
            logits = attack_logits(relative.target)
            outputs = mean_logits(logits, part.x, part.ids, range(n), self.batch_size)
            self.ledger.charge(FORWARD * relative.cost * n, active)
            shape = (len(self.problem.x), outputs.shape[1] - 1)
            self._ranked[relative.name] = torch.zeros(shape, dtype=torch.int64, device=outputs.device)
            self._ranked[relative.name][active] = others_by_logit(outputs, part.y)
        return self._ranked[relative.name][active]

    def knows(self, relative: Relative) -> bool:
        """Whether `ranked` has been asked for it."""
        return relative.name in self._ranked

    def certain(self, relative: Relative) -> bool:
        """Whether what is misclassified there is broken for good."""
        return relative.target is self.target and not self.target.is_random

    def draws(self) -> int:
        """The number of the first draw of a stage's gradients, which no other stage has."""
        self._queries += 1
        return (self._queries - 1) * STAGE_DRAWS

    def begins(self) -> int:
        """A new number for each random start."""
        self._begins += 1
        return self._begins - 1
