"""The loop of Auto-PGD (Croce and Hein 2020, algorithm 1), per image and independent of the batch.

Gradient, loss and correctness of an iterate are averages over the same draws; the published code takes the loss
and the correctness of the last draw only. On a deterministic model the iterates are those of the published code,
whose three deviations from the paper are kept: a step is halved when at most (not fewer than) rho k of the last k
steps rose, the very first loss counts as a rise if it is above zero, and of the ball and the box the box comes
last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import onto_l1_ball_in_box
from .gradient import Query

RHO = 0.75
MOMENTUM = 0.75
ROOM = 1e-12
"""Added to a length before dividing by it, as in the published code."""

Ask = Callable[[Tensor, Tensor, int], Query]
"""(points [n, C, H, W], which images of the batch they belong to [n], number of the query) to a ``Query``."""


@dataclass(frozen=True, eq=False)
class Found:
    """Outcome of one run.

    Attributes:
        x: the candidate of each image: the iterate with the fewest correct draws, among those the highest loss.
        correct: share of correct draws there [B].
        loss: mean loss there [B].
        losses: [n_iter, B], the loss after each step; NaN after an image was left alone.
        corrects: [n_iter, B], the share of correct draws there; NaN likewise.
        first: the answer at the start.
        best: the iterate of highest loss, what the published code calls x_best.
    """

    x: Tensor
    correct: Tensor
    loss: Tensor
    losses: Tensor
    corrects: Tensor
    first: Query
    best: Tensor


class Loop(ABC):
    """State of a run: every tensor has one entry per image of the batch, whether it is still moved or not."""

    @property
    @abstractmethod
    def first_window(self) -> int:
        """Steps until the first check."""

    @abstractmethod
    def step(self, moving: Tensor, i: int) -> None:
        """Move the points of these images."""

    @abstractmethod
    def check(self, moving: Tensor, window: int) -> int:
        """Adapt the step sizes after ``window`` steps; the number of steps until the next check."""

    def __init__(self, ask: Ask, x: Tensor, start: Tensor, norm: str, eps: float, n_iter: int) -> None:
        self.ask, self.x, self.norm, self.eps, self.n_iter = ask, x, norm, eps, n_iter
        everyone = torch.arange(len(x), device=x.device)
        self.point, self.before = start.clone(), start.clone()
        first = ask(start, everyone, 0)
        self.first, self.gradient = first, first.gradient.clone()
        self.best, self.best_gradient, self.best_loss = (
            start.clone(),
            first.gradient.clone(),
            first.loss.clone(),
        )
        self.found, self.found_loss, self.found_correct = (
            start.clone(),
            first.loss.clone(),
            first.correct.clone(),
        )
        self.step_size = torch.full_like(first.loss, 2.0 * eps)
        self.last_loss, self.rises = torch.zeros_like(first.loss), torch.zeros_like(first.loss)
        self.was_reduced = torch.ones_like(first.loss, dtype=torch.bool)
        self.loss_at_check = first.loss.clone()
        self.losses = x.new_full((n_iter, len(x)), torch.nan)
        self.corrects = self.losses.clone()

    def run(self, stop: bool, tick: Callable[[int, float], None]) -> Found:
        """All iterations; ``stop`` leaves an image alone once no draw is classified correctly."""
        window, waited = self.first_window, 0
        for i in range(self.n_iter):
            moving = (self.found_correct > 0).nonzero()[:, 0] if stop else torch.arange(len(self.x))
            moving = moving.to(self.x.device)
            if not len(moving):
                break
            self.step(moving, i)
            self._look(moving, i)
            tick(i, float(self.losses[i, moving].mean()))
            waited += 1
            if waited == window:
                window, waited = self.check(moving, window), 0
        seen = (self.losses, self.corrects, self.first, self.best)
        return Found(self.found, self.found_correct, self.found_loss, *seen)

    def go_back(self, where: Tensor) -> None:
        """Continue from the best point."""
        _put(where, (self.point, self.best[where]), (self.gradient, self.best_gradient[where]))

    def _look(self, moving: Tensor, i: int) -> None:
        point = self.point[moving]
        answer = self.ask(point, moving, i + 1)
        self.gradient[moving] = answer.gradient
        self.losses[i, moving], self.corrects[i, moving] = answer.loss, answer.correct
        self.rises[moving] += (answer.loss > self.last_loss[moving]).to(self.rises.dtype)
        self.last_loss[moving] = answer.loss
        higher = answer.loss > self.best_loss[moving]
        _put(moving[higher], (self.best, point[higher]), (self.best_gradient, answer.gradient[higher]))
        self.best_loss[moving[higher]] = answer.loss[higher]
        fewer = answer.correct < self.found_correct[moving]
        tied = answer.correct == self.found_correct[moving]
        better = fewer | (tied & (answer.loss > self.found_loss[moving]))
        _put(moving[better], (self.found, point[better]), (self.found_loss, answer.loss[better]))
        self.found_correct[moving[better]] = answer.correct[better]


class DenseLoop(Loop):
    """The loop for "Linf" and "L2"."""

    @property
    def first_window(self) -> int:
        """22 % of the iterations; each later window is 3 % shorter, down to 6 %."""
        return max(int(0.22 * self.n_iter), 1)

    def step(self, moving: Tensor, i: int) -> None:
        """A step along the sign of the gradient or its direction, with momentum from the second on."""
        share = 1.0 if i == 0 else MOMENTUM
        x, point, before = self.x[moving], self.point[moving], self.before[moving]
        length = self.step_size[moving].view(-1, 1, 1, 1)
        gradient = self.gradient[moving]
        direction = gradient.sign() if self.norm == "Linf" else gradient / (l2(gradient) + ROOM)
        ahead = self._into(point + length * direction, x)
        moved = self._into(point + (ahead - point) * share + (point - before) * (1.0 - share), x)
        self.before[moving], self.point[moving] = point, moved

    def _into(self, candidate: Tensor, x: Tensor) -> Tensor:
        if self.norm == "Linf":
            return candidate.clamp(x - self.eps, x + self.eps).clamp(0.0, 1.0)
        offset = candidate - x
        length = l2(offset)
        return (x + offset / (length + ROOM) * length.clamp_max(self.eps)).clamp(0.0, 1.0)

    def check(self, moving: Tensor, window: int) -> int:
        """Halve the step and go back to the best point where the loss rose too seldom or nothing came of it."""
        stuck = ~self.was_reduced[moving] & (self.loss_at_check[moving] >= self.best_loss[moving])
        reduce = (self.rises[moving] <= RHO * window) | stuck
        self.was_reduced[moving] = reduce
        self.loss_at_check[moving] = self.best_loss[moving]
        self.rises[moving] = 0.0
        back = moving[reduce]
        self.step_size[back] /= 2.0
        self.go_back(back)
        return max(window - max(int(0.03 * self.n_iter), 1), max(int(0.06 * self.n_iter), 1))


def l2(offset: Tensor) -> Tensor:
    """Length of each image's vector, [B, 1, 1, 1]."""
    return offset.square().flatten(1).sum(1).sqrt().view(-1, 1, 1, 1)


def _put(where: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    for target, values in pairs:
        target[where] = values


STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""Radii in units of eps and their shares of the iterations: the search begins in a larger ball."""


class SparseLoop(Loop):
    """Steps along the signs of the largest gradient entries; how many adapts to how many pixels have changed."""

    def __init__(self, ask: Ask, x: Tensor, start: Tensor, eps: float, n_iter: int) -> None:
        super().__init__(ask, x, start, "L1", eps, n_iter)
        self.step_size.fill_(eps)
        self.support = self._support(torch.arange(len(x), device=x.device))
        self.share = self.support / x[0].numel() / 1.5

    @property
    def first_window(self) -> int:
        """Steps until the first check, and between all."""
        return max(int(0.04 * self.n_iter), 1)

    def step(self, moving: Tensor, i: int) -> None:
        """One sparse step, projected exactly onto ball and box; no momentum."""
        x, point, gradient = (u[moving].flatten(1) for u in (self.x, self.point, self.gradient))
        size, n = gradient.abs(), x.shape[1]
        rank = ((1.0 - self.share[moving]) * n).clamp(0, n - 1).long()
        threshold = size.sort(1).values.gather(1, rank[:, None])
        signs = torch.where(size >= threshold, gradient.sign(), 0.0)
        unit = signs / (signs.abs().sum(1, keepdim=True) + 1e-10)
        moved = onto_l1_ball_in_box(point + self.step_size[moving, None] * unit, x, self.eps)
        self.point[moving] = moved.view_as(self.point[moving])

    def check(self, moving: Tensor, window: int) -> int:
        """Where the changed pixels became fewer: full steps from the best point; elsewhere shorter steps."""
        support, before = self._support(moving), self.support[moving]
        fewer = (support < 0.95 * before) & (before > 0)
        self.support[moving], self.share[moving] = support, support / self.x[0].numel() / 1.5
        shorter = (self.step_size[moving] / 1.5).clamp(self.eps / 10.0, self.eps)
        self.step_size[moving] = torch.where(fewer, self.eps, shorter)
        self.go_back(moving[fewer])
        return window

    def _support(self, moving: Tensor) -> Tensor:
        changed = self.best[moving] != self.x[moving]
        return changed.flatten(1).sum(1).to(self.x.dtype)
