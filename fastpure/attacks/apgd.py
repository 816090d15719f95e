"""Auto-PGD with cross entropy, DLR and targeted DLR: no step size to choose, gradients and losses averaged.

Croce and Hein 2020 for Linf and L2, Croce and Hein 2021 for L1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import whole
from ..kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform
from .apgd_loop import ROOM, STAGES, Ask, DenseLoop, Found, SparseLoop, l2
from .base import Problem, Proposal, Tick
from .budget import Budget, onto_l1_ball_in_box
from .gradient import Average, Logits, Loss, Query, counting, mean_logits, objective, query
from .gradient_attack import StartedAttack, TargetedAttack
from .ledger import Ledger
from .losses import dlr_targeted, require_classes
from .pgd import is_flat
from .targets import others_by_logit

Stages = tuple[tuple[float, float], ...]
"""Radii in units of eps and their shares of the iterations, as in ``STAGES``."""


@dataclass(frozen=True, kw_only=True)
class AutoPGD(StartedAttack):
    """Base of the three; 100 iterations by default.

    Where nothing is random an image is left alone once it is misclassified, and later restarts and targets go on
    with the others. Where something is, every image gets all of them, because being wrong on the attack's draws
    decides nothing.

    Attributes:
        n_restarts: runs from different random points; the best candidate of each image is kept.
        start: see `StartedAttack`; the first restart (of each target) begins there, the others at random points. For L1
            that restart stays in the ball: the larger ones are there to find a start.
    """

    n_iter: int = 100
    n_restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_restarts", self.n_restarts, minimum=1)

    @property
    @abstractmethod
    def loss(self) -> Loss:
        """What is ascended."""

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_iter * self.n_restarts

    def labels(self, problem: Problem, logits: Logits) -> list[Tensor]:
        """The labels of each round of restarts, [B] or [B, 2]."""
        return [problem.y]

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The best candidate over all restarts and targets."""
        if not len(problem.x):
            return Proposal(problem.x, problem.x.new_empty((self.n_iter, 0)))
        logits = self.logits(problem)
        asked, counted = counting(logits)
        rounds = self.labels(problem, counted)
        best: Found | None = None
        histories, agreement, given = [], Average(problem.x), self.given(problem)
        ledger = Ledger(problem.x, self.mode().cost(problem.target) * self.n_draws(problem))
        ledger.charge(self.mode().answer_cost(problem.target) * sum(asked) / len(problem.x))
        for number in range(len(rounds) * self.n_restarts):
            playing = torch.ones_like(problem.y, dtype=torch.bool)
            if best is not None and not problem.target.is_random:
                playing = best.correct > 0
            if not bool(playing.any()):
                break
            chosen = playing.nonzero()[:, 0]
            labels = rounds[number // self.n_restarts]
            part = problem.part(chosen)
            own = Average(part.x)
            begin = None if given is None or number % self.n_restarts else given[chosen]
            found = self._run(part, labels[chosen], logits, number, tick, own, begin)
            agreement.add(own.mean, chosen)
            best = found if best is None else _merge(best, found, chosen)
            histories.append(_spread(found.losses, chosen, len(problem.x)))
            ledger.walked(found.corrects, chosen, self._starts(begin))
        assert best is not None
        losses, flat = torch.cat(histories), is_flat(best.first)
        return ledger.into(Proposal(best.x, losses, flat, agreement=agreement.mean))

    def _starts(self, begin: Tensor | None) -> int:
        """Points that a run asks about without a step to them; ``begin`` is where it was told to begin."""
        staged = self.norm == "L1" and begin is None
        return sum(length > 0 for length in self._lengths(STAGES)) if staged else 1

    def _lengths(self, stages: Stages) -> list[int]:
        """Iterations in each ball."""
        lengths = [math.ceil(share * self.n_iter) for _, share in stages[:-1]]
        return [*lengths, self.n_iter - sum(lengths)]

    def first_point(self, problem: Problem, number: int) -> Tensor:
        """See `random_point`; for L1 in the first and largest of the balls."""
        budget = Budget(self.norm, STAGES[0][0] * self.eps) if self.norm == "L1" else self.budget
        return random_point(budget, problem, self.seed, number)

    def _run(
        self,
        problem: Problem,
        labels: Tensor,
        logits: Logits,
        number: int,
        tick: Tick,
        agreement: Average,
        begin: Tensor | None,
    ) -> Found:
        goal, n = objective(logits, self.loss), self.n_draws(problem)
        queries = number * (self.n_iter + len(STAGES))

        def ask(points: Tensor, which: Tensor, i: int) -> Query:
            draws = range((queries + i) * n, (queries + i + 1) * n)
            found = query(goal, points, labels[which], problem.ids[which], draws, self.batch_size)
            agreement.add(found.agreement, which)
            return found

        def tell(i: int, loss: float) -> None:
            tick(number * self.n_iter + i, loss)

        stop = not problem.target.is_random
        start = self.first_point(problem, number) if begin is None else begin
        if self.norm != "L1":
            return DenseLoop(ask, problem.x, start, self.norm, self.eps, self.n_iter).run(stop, tell)
        stages = STAGES if begin is None else STAGES[-1:]
        return self._run_stages(ask, tell, problem.x, start, stop, stages)

    def _run_stages(
        self, ask: Ask, tell: Tick, x: Tensor, start: Tensor, stop: bool, stages: Stages
    ) -> Found:
        losses, corrects, done = [], [], 0
        found: Found | None = None
        for stage, ((radius, _), length) in enumerate(zip(stages, self._lengths(stages), strict=True)):
            if length < 1:
                continue
            first = done + stage
            loop = SparseLoop(
                lambda points, which, i, first=first: ask(points, which, first + i),  # type: ignore[misc]
                x,
                into_l1(start, x, radius * self.eps),
                radius * self.eps,
                length,
            )
            # Success in a larger ball is none: only the last stage may leave an image alone.
            last = stage == len(stages) - 1
            found = loop.run(stop and last, lambda i, loss, done=done: tell(done + i, loss))  # type: ignore[misc]
            start, done = found.best, done + length
            losses.append(found.losses)
            corrects.append(found.corrects)
        assert found is not None
        return replace(found, losses=torch.cat(losses), corrects=torch.cat(corrects))


@dataclass(frozen=True, kw_only=True)
class APGDCE(AutoPGD, TargetedAttack):
    """APGD on the cross entropy, or towards a target on minus that of the target."""

    @property
    def loss(self) -> Loss:
        """Cross entropy."""
        return self.loss_called("ce")

    def labels(self, problem: Problem, logits: Logits) -> list[Tensor]:
        """The true classes, with the targets where there are some."""
        return [self.aims(problem, logits)]


@dataclass(frozen=True, kw_only=True)
class APGDDLR(AutoPGD, TargetedAttack):
    """APGD on the difference of logits ratio; needs at least three classes, four towards a target."""

    @property
    def loss(self) -> Loss:
        """DLR."""
        return self.loss_called("dlr")

    def labels(self, problem: Problem, logits: Logits) -> list[Tensor]:
        """The true classes, with the targets where there are some."""
        targeted = self.targeted is not None
        name = "dlr-targeted" if targeted else "dlr"
        require_classes(problem.n_classes, 4 if targeted else 3, name, "Use the attack apgd-ce")
        return [self.aims(problem, logits)]


@dataclass(frozen=True, kw_only=True)
class APGDT(AutoPGD):
    """APGD on the targeted DLR against the most probable other classes in turn; needs at least four classes.

    Attributes:
        n_target_classes: how many; all others where there are fewer.
    """

    n_target_classes: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_target_classes", self.n_target_classes, minimum=1)

    @property
    def loss(self) -> Loss:
        """Targeted DLR."""
        return dlr_targeted

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return super().iterations() * self.n_target_classes

    def labels(self, problem: Problem, logits: Logits) -> list[Tensor]:
        """(true class, target) for each target, by falling mean logit of the original image."""
        advice = "Use the attack apgd-ce" + (" or apgd-dlr" if problem.n_classes == 3 else "")
        require_classes(problem.n_classes, 4, "dlr-targeted", advice)
        outputs = mean_logits(logits, problem.x, problem.ids, range(self.n_draws(problem)), self.batch_size)
        others = others_by_logit(outputs, problem.y)
        n = min(self.n_target_classes, outputs.shape[1] - 1)
        return [torch.stack([problem.y, others[:, k]], 1) for k in range(n)]


def random_point(budget: Budget, problem: Problem, seed: int, number: int = 0) -> Tensor:
    """Random point on the surface of the cube (largest entry eps) or of the ball, clamped to [0, 1], [B, C, H, W].

    For L1 the image plus standard normal noise, projected. A function of the seed, the sample ids and ``number``.
    """
    shape = tuple(problem.x.shape[1:])
    keys = NoiseKeys.make(seed, problem.ids, number, Domain.ATTACK, problem.x.device)
    if budget.norm == "Linf":
        noise = 2.0 * philox_uniform(keys, 0, Stream.ATTACK_START, shape).to(torch.float32) - 1.0
        length = noise.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
        return (problem.x + budget.eps * noise / (length + ROOM)).clamp(0.0, 1.0)
    noise = philox_normal(keys, 0, Stream.ATTACK_START, shape)
    if budget.norm == "L1":
        return into_l1(problem.x + noise, problem.x, budget.eps)
    return (problem.x + budget.eps * noise / (l2(noise) + ROOM)).clamp(0.0, 1.0)


def into_l1(candidate: Tensor, x: Tensor, radius: float) -> Tensor:
    """The nearest images to ``candidate`` within ``radius`` of ``x`` in L1, both [B, C, H, W]."""
    return onto_l1_ball_in_box(candidate.flatten(1), x.flatten(1), radius).view_as(x)


def _merge(best: Found, found: Found, chosen: Tensor) -> Found:
    fewer = found.correct < best.correct[chosen]
    tied = found.correct == best.correct[chosen]
    better = fewer | (tied & (found.loss > best.loss[chosen]))
    x, correct, loss = best.x.clone(), best.correct.clone(), best.loss.clone()
    where = chosen[better]
    x[where], correct[where], loss[where] = found.x[better], found.correct[better], found.loss[better]
    return replace(best, x=x, correct=correct, loss=loss)


def _spread(losses: Tensor, chosen: Tensor, n: int) -> Tensor:
    wide = losses.new_full((len(losses), n), torch.nan)
    wide[:, chosen] = losses
    return wide
