"""Auto-PGD for the L1 ball (Croce and Hein 2021, "Mind the box", algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from .apgd_loop import Ask, Loop
from .projection import onto_l1_ball_in_box

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
