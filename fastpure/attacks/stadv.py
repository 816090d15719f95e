"""StAdv (Xiao et al., ICLR 2018): every pixel is fetched from a little aside. Ours, and DiffPure's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import mistake, positive
from .base import Problem, Proposal, Tick
from .budget import Box
from .gradient import Average, query
from .gradient_attack import RenderedAttack
from .pgd import is_flat

Move = Callable[[Tensor], Tensor]
"""A gradient with respect to the flow to the change of the flow; may remember earlier ones."""


@dataclass(frozen=True, kw_only=True)
class FlowAttack(RenderedAttack):
    """Gradient ascent on a flow field, at most ``bound`` in either direction.

    The flow is measured in units of half the image's side (0.05 moves a pixel of a 32-pixel image by 0.8). The
    loss is lowered by ``weight`` times the sum over pixels of the flow's distance from its neighbours' (StAdv's
    eq. 4), which keeps shapes together. The returned image is rendered from the last flow; ``distance`` of the
    result is the largest pixel change, for information, since no lp ball confines this attack.
    """

    @property
    @abstractmethod
    def weight(self) -> float:
        """Weight of the penalty, at least 0."""

    @abstractmethod
    def mover(self) -> Move:
        """The rule of the steps, at its beginning."""

    def numbers(self, *names: str) -> None:
        """Refuse fields of these names that are neither None nor finite and at least 0."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(mistake(name, "a finite number >= 0", value))

    @property
    def budget(self) -> Box:
        """All images; the flow is what is bounded."""
        return Box()

    @property
    def measure(self) -> str:
        """What is bounded."""
        return "largest displacement in units of half the side"

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The image of the last flow."""
        x, flat = problem.x, None
        if not len(x):
            return Proposal(x, x.new_empty((self.n_iter, 0)))
        flow = x.new_zeros((len(x), 2, *x.shape[2:]))
        losses, goal = x.new_zeros((self.n_iter, len(x))), self.goal(problem)
        move, weight = self.mover(), self.weight
        agreement = Average(x)
        for i in range(self.n_iter):
            leaf = flow.requires_grad_(True)
            with torch.enable_grad():
                image = warp(x, leaf)
                draws = self.draws(problem, i)
                found = query(goal, image.detach(), problem.y, problem.ids, draws, self.batch_size)
                value = (image * found.gradient).sum() - weight * roughness(leaf).sum()
            (gradient,) = torch.autograd.grad(value, leaf)
            losses[i] = found.loss
            agreement.add(found.agreement)
            flat = is_flat(found) if flat is None else flat
            flow = (leaf.detach() + move(gradient)).clamp(-self.bound, self.bound)
            tick(i, float(found.loss.mean()))
        return Proposal(warp(x, flow), losses, flat, agreement=agreement.mean)


@final
@dataclass(frozen=True, kw_only=True)
class StAdv(FlowAttack):
    """Signed gradient ascent on the flow, as in PGD; see `FlowAttack`.

    Attributes:
        bound: largest displacement.
        smoothness: weight of the penalty, 0 for none.
        step_size: of the flow; 2.5 bound / n_iter if None.
    """

    smoothness: float = 0.0005
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.numbers("smoothness", "step_size")

    @property
    def weight(self) -> float:
        """See ``FlowAttack.weight``."""
        return self.smoothness

    def mover(self) -> Move:
        """See ``FlowAttack.mover``; steps of one length, by the sign of the gradient."""
        step_size = self.step_size if self.step_size is not None else 2.5 * self.bound / self.n_iter
        return lambda gradient: step_size * gradient.sign()


@final
@dataclass(frozen=True, kw_only=True)
class DiffPureStAdv(FlowAttack):
    """StAdv as DiffPure (Nie et al. 2022) was attacked with it: Adam on the flow; see `FlowAttack`.

    From the constants of its code: Adam with rate 0.01, 100 iterations, the loss of Carlini and Wagner, a penalty of
    0.0025 / bound, bound 0.05. The loss is ``"margin"``, which goes on where theirs may stop at success: under
    noise an image is never broken for good. How the penalty is summed, ``eot_iter`` and that the last flow counts
    are ours.

    Attributes:
        bound: largest displacement; the flow is cut back to it after every step.
        smoothness: weight of the penalty, 0 for none; 0.0025 / bound if None.
        step_size: Adam's rate.
    """

    loss: str = "margin"
    smoothness: float | None = None
    step_size: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.numbers("smoothness")
        positive("step_size", self.step_size)

    @property
    def weight(self) -> float:
        """See ``FlowAttack.weight``."""
        return 0.0025 / self.bound if self.smoothness is None else self.smoothness

    def mover(self) -> Move:
        """See ``FlowAttack.mover``; Adam's steps (Kingma and Ba 2015) with its usual constants."""
        return Adam(self.step_size)


class Adam:
    """Steps uphill, of every pixel by itself: images do not matter to each other."""

    def __init__(self, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.first, self.second = torch.zeros(()), torch.zeros(())

    def __call__(self, gradient: Tensor) -> Tensor:
        """The next step."""
        self.count += 1
        self.first = BETA1 * self.first.to(gradient) + (1.0 - BETA1) * gradient
        self.second = BETA2 * self.second.to(gradient) + (1.0 - BETA2) * gradient.square()
        scale = (self.second / (1.0 - BETA2**self.count)).sqrt() + TINY
        return self.rate * (self.first / (1.0 - BETA1**self.count)) / scale


BETA1, BETA2, TINY = 0.9, 0.999, 1e-8
"""Adam's constants."""


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """``x`` [B, C, H, W] fetched at each pixel's place plus ``flow`` [B, 2, H, W], bilinear, edges repeated."""
    identity = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
    grid = F.affine_grid(identity, list(x.shape), align_corners=False) + flow.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def roughness(flow: Tensor) -> Tensor:
    """Sum over pixels of the flow's distance to the neighbours right and below, [B]; smooth at zero."""
    total = flow.new_zeros(len(flow))
    for axis in (2, 3):
        total = total + (flow.diff(dim=axis).square().sum(1) + 1e-12).sqrt().flatten(1).sum(1)
    return total
