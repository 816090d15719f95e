"""DiffHammer (NeurIPS 2024): gradients of the draws that can be broken together, one backward pass for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..errors import finite, mistake, whole
from ..kernels import Domain
from ..purify import Target
from .apgd import random_point
from .apgd_loop import DenseLoop, Found
from .base import Problem, Proposal, Tick
from .gradient import Loss, Query, pairs, require_gradient
from .gradient_attack import StartedAttack
from .ledger import FORWARD, Ledger
from .losses import LOSSES
from .pgd import is_flat
from .weakness import Effort

SHARPNESS, ROUNDS = 5.0, 5
"""Slope of the sigmoid that weighs a draw, and how often the weights are found anew."""

RESTARTS = ("margin", "ce", "dlr")
"""The loss of each restart."""

BROKEN = 0.5
"""Share of wrong draws, at the best point of a restart, above which later ones leave an image alone: the authors' rule,
which is one of lucky looks. It saves time and decides nothing else."""


@final
@dataclass(frozen=True, kw_only=True)
class DiffHammer(StartedAttack):
    """Auto-PGD on a direction that breaks the draws which have one in common, instead of the mean over all.

    Per iteration ``eot_iter`` draws are purified without a graph, and the classifier's gradient at each purified image
    is taken. The direction begins at the draw whose own gradient raises the losses of the others most to first order,
    is made the mean of the draws that it breaks (five rounds of weighing), and goes back through the purification of
    that first draw alone. Restarts use the margin, cross entropy and DLR (three classes or more), the later ones on
    images that half of the draws or fewer get wrong. An iteration costs ``eot_iter`` / 2 + 1 gradients.

    From the formulas; the authors' loop computes its weighted mean and never uses it, which is not copied.

    Attributes:
        n_iter: iterations of each restart.
        eot_iter: draws per iteration.
        n_restarts: how many of the three.
        start: see `StartedAttack`; of the first restart.

    Raises:
        TypeError: the target does not purify.
        ValueError: ``norm`` "L1", or another ``gradient`` than "exact".
    """

    n_iter: int = 50
    eot_iter: int = 10
    n_restarts: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_restarts", self.n_restarts, minimum=1, maximum=len(RESTARTS))
        if self.norm == "L1":
            raise ValueError(mistake("norm", "'Linf' or 'L2' for DiffHammer", repr(self.norm), "Use apgd-ce"))
        if self.gradient != "exact":
            expected = "'exact': what goes back through the purifier is one draw's own derivative"
            raise ValueError(mistake("gradient", expected, repr(self.gradient)))

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_iter * self.n_restarts

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        wanted = "dlr" in RESTARTS[: self.n_restarts]
        missing = (
            ("dlr is left out: it needs 3 classes, and there are 2",) if wanted and n_classes == 2 else ()
        )
        return Effort(steps=self.n_iter, draws=self.eot_iter, left_out=missing)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The candidate of the fewest correct draws, of equal ones the first."""
        if not problem.target.purifies:
            problem.target.no_purifier("DiffHammer", "Use apgd-ce")
        if not len(problem.x):
            return Proposal(problem.x, problem.x.new_empty((self.n_iter, 0)))
        x, given = problem.x.clone(), self.given(problem)
        correct = torch.full_like(problem.x[:, 0, 0, 0], torch.inf)
        flat, losses = torch.zeros_like(problem.y, dtype=torch.bool), []
        n = self.eot_iter if problem.target.is_random else 1
        ledger = Ledger(problem.x, cost(n))
        names = [name for name in RESTARTS[: self.n_restarts] if name != "dlr" or problem.n_classes > 2]
        for number, name in enumerate(names):
            chosen = (correct >= (1.0 - BROKEN if number else 0.0)).nonzero()[:, 0]
            if not len(chosen):
                break
            part = problem.part(chosen)
            begin = random_point(self.budget, part, self.seed, number)
            if given is not None and number == 0:
                begin = given[chosen]
            hammer = Hammer(part, LOSSES[name], self.norm, self.eps, n, self.batch_size, number << 20)
            found = hammer.run(begin, self.n_iter, lambda i, loss, k=number: tick(k * self.n_iter + i, loss))  # type: ignore[misc]
            better = found.correct < correct[chosen]
            x[chosen[better]], correct[chosen[better]] = found.x[better], found.correct[better]
            if number == 0:
                flat = is_flat(found.first)
            wide = found.losses.new_full((len(found.losses), len(problem.x)), torch.nan)
            wide[:, chosen] = found.losses
            losses.append(wide)
            ledger.walked(found.corrects, chosen, 1)
        return ledger.into(Proposal(x, torch.cat(losses), flat))


def cost(n_draws: int) -> float:
    """Gradients that an iteration costs: a forward pass for every draw, and one draw once more with its backward."""
    return FORWARD * n_draws + 1.0


@dataclass(eq=False)
class Hammer:
    """One restart. ``first`` is the number of its first draw."""

    problem: Problem
    loss: Loss
    norm: str
    eps: float
    n_draws: int
    batch_size: int
    first: int

    def run(self, start: Tensor, n_iter: int, tick: Tick) -> Found:
        """Auto-PGD along the smoothed directions from ``start`` [B, C, H, W]."""
        smoothed = torch.zeros_like(start)

        def ask(points: Tensor, which: Tensor, i: int) -> Query:
            found = self.query(points, which, self.first + i * self.n_draws)
            share = (i + 1.0) ** -0.5
            smoothed[which] = share * found.gradient + (1.0 - share) * smoothed[which]
            return Query(smoothed[which].clone(), found.loss, found.correct, found.agreement)

        loop = DenseLoop(ask, self.problem.x, start, self.norm, self.eps, n_iter)
        return loop.run(not self.problem.target.is_random, tick)

    def query(self, x: Tensor, which: Tensor, first: int) -> Query:
        """The direction at ``x`` [n, C, H, W], with mean loss and share of correct draws."""
        target, n, draws = self.problem.target, len(x), range(first, first + self.n_draws)
        y, ids = self.problem.y[which], self.problem.ids[which]
        gradients, losses = x.new_empty((n * len(draws), *x.shape[1:])), x.new_empty(n * len(draws))
        correct = torch.empty_like(losses)
        for part, image, draw in pairs(n, draws, self.batch_size, x.device):
            with torch.no_grad():
                purified = target.purify(x[image], ids[image], draw, Domain.ATTACK)
            point = purified.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = target.classify(point, ids[image], draw, Domain.ATTACK)
                values = self.loss(logits, y[image])
            require_gradient(values)
            (gradients[part],) = torch.autograd.grad(values.sum(), point)
            losses[part] = values.detach()
            correct[part] = (logits.detach().argmax(1) == y[image]).to(x.dtype)
        g, values = gradients.view(n, len(draws), -1).double(), losses.view(n, len(draws))
        chosen, r = common(g, values.double(), self.norm, self.eps)
        v = self._back(target, x, ids, first + chosen, r.view_as(x).to(x.dtype))
        unknown = torch.full((n,), torch.nan, dtype=torch.float64, device=x.device)
        return Query(v, values.mean(1), correct.view(n, len(draws)).mean(1), unknown)

    def _back(self, target: Target, x: Tensor, ids: Tensor, draws: Tensor, r: Tensor) -> Tensor:
        """The transposed Jacobian of each image's chosen draw times ``r``."""
        v = torch.empty_like(x)
        for part in torch.arange(len(x), device=x.device).split(self.batch_size):
            point = x[part].detach().requires_grad_(True)
            with torch.enable_grad():
                purified = target.purify(point, ids[part], draws[part], Domain.ATTACK)
            require_gradient(purified)
            (v[part],) = torch.autograd.grad(purified, point, r[part])
        return finite(v, ids, "the gradient of the attack's loss")


def common(g: Tensor, losses: Tensor, norm: str, eps: float) -> tuple[Tensor, Tensor]:
    """The draw to begin with, int64 [B], and the direction that the draws it breaks have in common, [B, D].

    Args:
        g: gradients of the losses with respect to the purified images, float64 [B, N, D].
        losses: float64 [B, N], larger is worse for the defence.
        norm: "Linf" or "L2", the norm in which a direction is unit.
        eps: how far a first-order step goes when the first draw is chosen.
    """
    gains = torch.einsum("bid,bjd->bij", unit(g, norm), g)
    chosen = torch.nn.functional.elu(losses[:, None, :] + eps * gains).sum(2).argmax(1)
    r = g[torch.arange(len(g), device=g.device), chosen]
    for _ in range(ROUNDS):
        gains = losses + torch.einsum("bd,bjd->bj", unit(r, norm), g)
        # The sigmoids over their sum: where all of them underflow, their ratios are still known.
        weights = torch.nn.functional.logsigmoid(SHARPNESS * gains).softmax(1)
        r = torch.einsum("bj,bjd->bd", weights, g)
    return chosen, r


def unit(g: Tensor, norm: str) -> Tensor:
    """The steepest direction of ``g`` [..., D] of unit length in ``norm``."""
    if norm == "Linf":
        return g.sign()
    return g / g.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
