"""What `Adaptive` is made of: searching a relative, refining on the defence, comparing candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Domain
from ..purify import Target
from .apgd import into_l1, random_point
from .apgd_loop import DenseLoop, SparseLoop
from .base import Problem
from .budget import Budget
from .gradient import Logits, Objective, Query, objective, pairs, query
from .losses import cross_entropy, margin, margin_targeted

CHOOSING = 1 << 28
"""Attack draws from here on compare candidates; no gradient is ever taken under them."""

MOMENTUM = 0.2
"""Weight of the newest gradient in the mean that a refinement follows; the mean of all before it has the rest."""

FIRST_STEP = 0.9
"""Share of the way to the corner that the first refining step goes; it falls to zero with what is left to spend."""

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
        goal: Objective,
        problem: Problem,
        labels: Tensor,
        x: Tensor,
        which: Tensor,
        draws: range,
        later: Tensor | None = None,
    ) -> Query:
        """The answer at ``x`` for the images numbered ``which`` [n] of ``problem``; see `gradient.query`."""
        found = query(goal, x, labels[which], problem.ids[which], draws, self.batch_size, later)
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
    goal, (first, n) = objective(logits, loss), draws

    def one(points: Tensor, which: Tensor, i: int) -> Query:
        return ask(goal, problem, labels, points, which, range(first + i * n, first + (i + 1) * n))

    start = random_point(budget, problem, *seed)
    loop: DenseLoop | SparseLoop
    if budget.norm == "L1":
        loop = SparseLoop(one, problem.x, into_l1(start, problem.x, budget.eps), budget.eps, n_iter)
    else:
        loop = DenseLoop(one, problem.x, start, budget.norm, budget.eps, n_iter)
    found = loop.run(stop, lambda i, loss: None)
    return found.x if stop else found.best


def refine(
    asks: Sequence[Asker],
    problem: Problem,
    modes: Sequence[Logits],
    start: Tensor,
    budget: Budget,
    n_draws: Tensor,
    allowance: float,
    first: int,
) -> tuple[Tensor, Tensor]:
    """Stochastic Frank-Wolfe with averaged gradients (Mokhtari et al. 2020) on the margin, from ``start``.

    A step goes a falling share of the way to the point of the ball that the averaged gradient favours, so that all
    draws so far decide about it, and the last point is the result: nothing is chosen by how it looked.

    Args:
        asks: an `Asker` for each mode.
        problem: the images.
        modes: what is differentiated, one after the other.
        start: [n, C, H, W] in the ball.
        budget: the ball.
        n_draws: int64 [n], draws per gradient to begin with, powers of two.
        allowance: draws for each image.
        first: number of the first draw.

    Returns:
        The images [n, C, H, W], and how many draws their gradients took in the end [n].
    """
    goals = [objective(logits, margin) for logits in modes]
    x, mean, n_draws = start.clone(), torch.zeros_like(start), n_draws.clone()
    spent, taken = torch.zeros_like(n_draws), torch.zeros_like(n_draws)
    wide = (-1, *(1,) * (x.dim() - 1))
    while bool((going := spent + n_draws <= allowance).any()):
        way = (spent / allowance).to(x.dtype)
        part = (way * len(modes)).long().clamp_max(len(modes) - 1)
        for n, k in sorted(set(zip(n_draws[going].tolist(), part[going].tolist(), strict=True))):
            which = (going & (n_draws == n) & (part == k)).nonzero()[:, 0]
            draws = range(first, first + n)
            found = asks[k](goals[k], problem, problem.y, x[which], which, draws, spent[which])
            share = (1.0 / (1.0 + taken[which])).clamp_min(MOMENTUM).to(x.dtype).view(wide)
            gradient = found.gradient / _length(found.gradient).clamp_min(1e-30)
            mean[which] = (1.0 - share) * mean[which] + share * gradient
            step = (FIRST_STEP * (1.0 - way[which])).view(wide)
            x[which] = _towards(budget, x[which], problem.x[which], mean[which], step)
            spent[which] += n
            taken[which] += 1
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


def _towards(budget: Budget, x: Tensor, originals: Tensor, mean: Tensor, share: Tensor) -> Tensor:
    """The share of the way from ``x`` to where the ball's linear maximiser lies; nowhere where ``mean`` is zero."""
    if budget.norm == "L1":  # its maximiser is one pixel: sparse steps as in PGD
        step = budget.ascend(x, mean, 1.0) - x
        return budget.project(x + share * budget.eps * step, originals)
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
    """Answers on choosing draws, summed over them, float64 [n] each; looks at the same images add up.

    Attributes:
        draws: how many.
        correct: correct ones.
        margins, squares: sum of the margins (positive means misclassified), and of their squares.
    """

    draws: Tensor
    correct: Tensor
    margins: Tensor
    squares: Tensor

    @staticmethod
    def none(n: int, device: torch.device) -> Looked:
        """Of images that nobody has looked at yet."""
        zero = torch.zeros(n, dtype=torch.float64, device=device)
        return Looked(zero, zero, zero, zero)

    def __add__(self, other: Looked) -> Looked:
        return Looked(*(a + b for a, b in zip(self._all(), other._all(), strict=True)))

    def at(self, images: Tensor) -> Looked:
        """Of these images, by index or mask."""
        return Looked(*(values[images] for values in self._all()))

    def put(self, images: Tensor, other: Looked) -> Looked:
        """With the answers of these images [m] replaced by ``other``'s [m]."""
        return Looked(
            *(
                mine.index_put((images,), theirs)
                for mine, theirs in zip(self._all(), other._all(), strict=True)
            )
        )

    @property
    def rate(self) -> Tensor:
        """Share of correct draws [n]; 1 where there are none."""
        return torch.where(self.draws > 0, self.correct / self.draws.clamp_min(1.0), 1.0)

    @property
    def margin(self) -> Tensor:
        """Mean margin [n]."""
        return self.margins / self.draws.clamp_min(1.0)

    @property
    def ratio(self) -> Tensor:
        """Mean margin by the standard deviation of a draw's; infinite where margins do not differ."""
        mean = self.margin
        variance = (self.squares / self.draws.clamp_min(1.0) - mean.square()).clamp_min(0.0)
        few = (self.draws / (self.draws - 1.0).clamp_min(1.0)).sqrt()
        return mean / (variance.sqrt() * few)

    @property
    def value(self) -> Tensor:
        """How often a draw is right, estimated, [n]: lower is worse for the defence.

        The mean of the share of correct draws and of what normal margins of this mean and spread would give, which
        varies less and knows more than zero or all of a few draws. Of equal ones the larger margin.
        """
        normal = torch.special.ndtr(-torch.nan_to_num(self.ratio, nan=0.0))
        known = torch.where(self.draws > 1, 0.5 * (self.rate + normal), self.rate)
        return known - 1e-6 * torch.tanh(self.margin)

    def _all(self) -> tuple[Tensor, ...]:
        return self.draws, self.correct, self.margins, self.squares


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
    correct, values = correct.view(len(x), len(draws)), values.view(len(x), len(draws))
    count = torch.full_like(correct[:, 0], len(draws)) if len(x) else correct.sum(1)
    return Looked(count, correct.sum(1), values.sum(1), values.square().sum(1))


def steps_for(allowance: float, cost: float, fewest: int, most: int) -> int:
    """Steps that ``allowance`` gradients pay at ``cost`` each, within bounds; 0 if not even ``fewest``."""
    steps = math.floor(allowance / cost + 1e-9)
    return 0 if steps < fewest else min(steps, most)
