"""Distance of the predicted clean image from the input: what MimicDiffusion and samplers of DPS's kind go down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import mistake, one_of, positive, whole
from ..norms import norm_called
from .base import GRADS, GuidanceStep
from .prediction import CleanPull

NORMS = ("l1", "l2", "squared")
"""sum |r|, sqrt(sum r^2), sum r^2."""


@dataclass(frozen=True)
class CleanDistance(CleanPull):
    """g(x) = -gradient by the state of |x0hat(x) - x0|, x0 the purifier's input, norms taken per image.

    ``norm``: see ``NORMS``; of the mean over an image's values instead of the sum with ``reduction`` "mean". ``pooled``
    above 1 adds the same of both images averaged over squares of that side.

    The gradient of an L1 norm is made of signs, and they are constant almost everywhere: its exact derivative through
    them is zero, whatever is attacked. ``grad`` "smoothed" purifies alike and gives an attacker, for the derivative of
    sign(r), that of r / sqrt(r^2 + ``width``^2); for the other norms it is "exact".
    """

    norm: str = "l1"
    reduction: str = "sum"
    pooled: int = 1
    width: float = 0.1
    grad: str = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norm_called("norm", self.norm, NORMS))
        one_of("reduction", self.reduction, ("sum", "mean"))
        whole("pooled", self.pooled, 1)
        positive("width", self.width)
        one_of("guidance_grad", self.grad, (*GRADS, "smoothed"))

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """The input itself, [B, C, H, W] in [-1, 1]."""
        return (x0,)

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """Raise ValueError unless the squares of side ``pooled`` tile the image."""
        if any(size % self.pooled for size in image_shape[1:]):
            raise ValueError(mistake("pooled", f"a divisor of the sides {image_shape[1:]}", self.pooled))

    def pull(self, clean: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """See ``CleanPull.pull``."""
        r = clean - context[0]
        w = self._slope(r)
        if self.pooled > 1:
            side = self.pooled
            coarse = self._slope(F.avg_pool2d(r, side)) / (side * side)
            w = w + coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)
        return -w

    def _slope(self, r: Tensor) -> Tensor:
        """Gradient of the norm of ``r``, in the shape of ``r``."""
        share = 1.0 / r[0].numel() if self.reduction == "mean" else 1.0
        if self.norm == "l1":
            return share * (_Sign.apply(r, self.width) if self.grad == "smoothed" else torch.sign(r))
        if self.norm == "squared":
            return (2.0 * share) * r
        power = share * r.flatten(1).square().sum(1).view(-1, 1, 1, 1)
        # Where nothing is left there is no direction: 0, as of the other norms.
        return share * r / power.clamp_min(torch.finfo(r.dtype).tiny).sqrt()


class _Sign(torch.autograd.Function):
    """sign(r) with the derivative of r / sqrt(r^2 + width^2)."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(r)
        ctx.width = width
        return torch.sign(r)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor, None]:
        (r,), square = ctx.saved_tensors, ctx.width**2
        return v[0] * (square / (r * r + square).pow(1.5)), None
