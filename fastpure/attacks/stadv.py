"""StAdv (Xiao et al., ICLR 2018): every pixel is fetched from a little aside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import mistake
from .base import Problem, Proposal, Tick
from .budget import Box
from .gradient import Average, query
from .gradient_attack import RenderedAttack
from .pgd import is_flat


@dataclass(frozen=True, kw_only=True)
class StAdv(RenderedAttack):
    """Signed gradient ascent on a flow field, at most ``bound`` in either direction.

    The flow is measured in units of half the image's side (0.05 moves a pixel of a 32-pixel image by 0.8). The
    loss is lowered by ``smoothness`` times the sum over pixels of the flow's distance from its neighbours' (their
    eq. 4), which keeps shapes together. The returned image is rendered from the projected flow; ``distance`` of
    the result is the largest pixel change, for information, since no lp ball confines this attack.

    Attributes:
        bound: largest displacement.
        smoothness: weight of the penalty, 0 for none.
        step_size: of the flow; 2.5 bound / n_iter if None.
    """

    smoothness: float = 0.0005
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("smoothness", "step_size"):
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
        step_size = self.step_size if self.step_size is not None else 2.5 * self.bound / self.n_iter
        agreement = Average(x)
        for i in range(self.n_iter):
            leaf = flow.requires_grad_(True)
            with torch.enable_grad():
                image = warp(x, leaf)
                draws = self.draws(problem, i)
                found = query(goal, image.detach(), problem.y, problem.ids, draws, self.batch_size)
                value = (image * found.gradient).sum() - self.smoothness * roughness(leaf).sum()
            (gradient,) = torch.autograd.grad(value, leaf)
            losses[i] = found.loss
            agreement.add(found.agreement)
            flat = is_flat(found) if flat is None else flat
            flow = (leaf.detach() + step_size * gradient.sign()).clamp(-self.bound, self.bound)
            tick(i, float(found.loss.mean()))
        return Proposal(warp(x, flow), losses, flat, agreement=agreement.mean)


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
