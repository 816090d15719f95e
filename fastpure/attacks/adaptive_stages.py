"""What `Adaptive` is made of: searching a relative, refining on the defence, comparing candidates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Domain
from ..purify import Target
from .apgd import into_l1, random_point
from .apgd_loop import DenseLoop, SparseLoop
from .base import Problem
from .budget import Budget
from .gradient import Logits, Loss, Query, objective, pairs, query
from .losses import cross_entropy, margin, margin_targeted

CHOOSING = 1 << 28
"""Attack draws from here on compare candidates; no gradient is ever taken under them."""

MOMENTUM = 0.2
"""Weight of the newest gradient in the mean that a refinement follows; the mean of all before it has the rest."""

FIRST_STEP = 0.3
"""Share of the way to the corner that the first refining step goes; it falls to zero linearly."""

MOST_DRAWS, FEWEST_DRAWS = 32, 2
"""Bounds of the draws per gradient."""

RAISE_BELOW, LOWER_ABOVE = 0.5, 0.9
"""Cosine between the halves of the draws: below the first twice as many are taken, above the second half as many."""


@dataclass(frozen=True)
class Asker:
    """How gradients are asked for.

    Attributes:
        batch_size: most (image, draw) pairs in one network call.
        note: called after each query: which images were asked about [n], under how many draws, and the answer.
    """

    batch_size: int
    note: Callable[[Tensor, int, Query], None]

    def __call__(
        self,
        logits: Logits,
        loss: Loss,
        problem: Problem,
        labels: Tensor,
        x: Tensor,
        which: Tensor,
        draws: range,
    ) -> Query:
        """The answer at ``x`` for the images numbered ``which`` [n] of ``problem``."""
        goal = objective(logits, loss)
        found = query(goal, x, labels[which], problem.ids[which], draws, self.batch_size)
        self.note(which, len(draws), found)
        return found


def search(
    ask: Asker,
    problem: Problem,
    logits: Logits,
    target_class: Tensor | None,
    budget: Budget,
    n_iter: int,
    draws: tuple[int, int],
    seed: tuple[int, int],
    stop: bool,
) -> Tensor:
    """Auto-PGD from a random point, on cross entropy, or on the margin towards a class of each image [n].

    Args:
        ask: see `Asker`.
        problem: the images, and what they are attacked through is ``logits``.
        logits: of the relative.
        target_class: int64 [n], or None for any class.
        budget: the ball.
        n_iter: steps.
        draws: number of the first draw, and how many a gradient is averaged over.
        seed: of the random point, and the number of the point.
        stop: leave an image alone once it is misclassified; its candidate is that point.

    Returns:
        A candidate for each image, [n, C, H, W].
    """
    loss, labels = cross_entropy, problem.y
    if target_class is not None:
        loss, labels = margin_targeted, torch.stack([problem.y, target_class], 1)
    first, n = draws

    def one(points: Tensor, which: Tensor, i: int) -> Query:
        return ask(logits, loss, problem, labels, points, which, range(first + i * n, first + (i + 1) * n))

    start = random_point(budget, problem, *seed)
    loop: DenseLoop | SparseLoop
    if budget.norm == "L1":
        loop = SparseLoop(one, problem.x, into_l1(start, problem.x, budget.eps), budget.eps, n_iter)
    else:
        loop = DenseLoop(one, problem.x, start, budget.norm, budget.eps, n_iter)
    found = loop.run(stop, lambda i, loss: None)
    return found.x if stop else found.best


def refine(
    ask: Asker,
    problem: Problem,
    logits_at: Callable[[float], Logits],
    start: Tensor,
    budget: Budget,
    n_iter: int,
    n_draws: Tensor,
    allowance: float,
    first: int,
) -> tuple[Tensor, Tensor]:
    """Stochastic Frank-Wolfe with averaged gradients (Mokhtari et al. 2020) on the margin, from ``start``.

    A step goes a falling share of the way to the point of the ball that the averaged gradient favours, so that all
    draws so far decide about it, and the last point is the result: nothing is chosen by how it looked.

    Args:
        ask: see `Asker`.
        problem: the images.
        logits_at: what is differentiated at a share in [0, 1] of the way.
        start: [n, C, H, W] in the ball.
        budget: the ball.
        n_iter: steps.
        n_draws: int64 [n], draws per gradient to begin with, powers of two.
        allowance: most gradients for one image.
        first: number of the first draw.

    Returns:
        The images [n, C, H, W], and how many draws their gradients took in the end [n].
    """
    x, mean, n_draws = start.clone(), torch.zeros_like(start), n_draws.clone()
    spent = torch.zeros_like(n_draws)
    for i in range(n_iter):
        logits = logits_at(i / max(n_iter - 1, 1))
        share = max(MOMENTUM, 1.0 / (i + 1))
        for n in sorted(set(n_draws.tolist())):
            which = ((n_draws == n) & (spent + n <= allowance)).nonzero()[:, 0]
            if not len(which):
                continue
            begin = first + i * MOST_DRAWS
            found = ask(logits, margin, problem, problem.y, x[which], which, range(begin, begin + n))
            spent[which] += n
            gradient = found.gradient / _length(found.gradient).clamp_min(1e-30)
            mean[which] = (1.0 - share) * mean[which] + share * gradient
            x[which] = _towards(
                budget, x[which], problem.x[which], mean[which], FIRST_STEP * (1.0 - i / n_iter)
            )
            n_draws[which] = _adapted(n, found.agreement)
    return x, n_draws


def _adapted(n: int, agreement: Tensor) -> Tensor:
    """How many draws the next gradient takes; a whole power of two, so that images of one number go together."""
    if n == 1:
        return torch.ones_like(agreement, dtype=torch.int64)
    more, fewer = agreement < RAISE_BELOW, agreement > LOWER_ABOVE
    wanted = torch.full_like(agreement, n)
    wanted = torch.where(more, 2.0 * n, torch.where(fewer, 0.5 * n, wanted))
    return wanted.clamp(FEWEST_DRAWS, MOST_DRAWS).long()


def _towards(budget: Budget, x: Tensor, originals: Tensor, mean: Tensor, share: float) -> Tensor:
    """The share of the way from ``x`` to where the ball's linear maximiser lies; nowhere where ``mean`` is zero."""
    if budget.norm == "L1":  # its maximiser is one pixel: sparse steps as in PGD
        return budget.project(budget.ascend(x, mean, share * budget.eps), originals)
    if budget.norm == "Linf":
        corner = (originals + budget.eps * mean.sign()).clamp(0.0, 1.0)
        return x + share * torch.where(mean == 0, torch.zeros_like(x), corner - x)
    corner = originals + budget.eps * mean / _length(mean).clamp_min(1e-30)
    moved = x + share * torch.where(_length(mean) == 0, torch.zeros_like(x), corner - x)
    return budget.project(moved, originals)


def _length(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).view(-1, *(1,) * (v.dim() - 1))


@dataclass(frozen=True, eq=False)
class Looked:
    """Answers on choosing draws: share of correct ones [n], mean margin [n] (positive means misclassified)."""

    correct: Tensor
    margin: Tensor


@torch.no_grad()
def look(target: Target, problem: Problem, x: Tensor, draws: range, batch_size: int) -> Looked:
    """How ``x`` [n, C, H, W] fares with the deployed defence under attack draws that no gradient has seen."""
    draws = draws if target.is_random else range(draws.start, draws.start + 1)
    correct = x.new_empty(len(x) * len(draws), dtype=torch.float64)
    values = torch.empty_like(correct)
    for part, image, draw in pairs(len(x), draws, batch_size, x.device):
        logits = target.logits(x[image], problem.ids[image], draw, Domain.ATTACK)
        correct[part] = (logits.argmax(1) == problem.y[image]).double()
        values[part] = margin(logits, problem.y[image]).double()
    shape = (len(x), len(draws))
    return Looked(correct.view(shape).mean(1), values.view(shape).mean(1))


def worse(a: Looked, b: Looked) -> Tensor:
    """Where ``a`` has fewer correct draws than ``b``, or as many and a larger margin, bool [n]."""
    return (a.correct < b.correct) | ((a.correct == b.correct) & (a.margin > b.margin))


def steps_for(allowance: float, cost: float, fewest: int, most: int) -> int:
    """Steps that ``allowance`` gradients pay at ``cost`` each, within bounds; 0 if not even ``fewest``."""
    steps = math.floor(allowance / cost + 1e-9)
    return 0 if steps < fewest else min(steps, most)
