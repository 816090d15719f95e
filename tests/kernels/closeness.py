"""How far a result is from the truth, in the three ways that matter for gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """Relative L2 error, 1 - cosine, and the mean error relative to the mean magnitude (a signed bias)."""

    rel_l2: float
    angle: float
    bias: float

    def within(self, limit: Distance) -> bool:
        """Whether none of the three exceeds ``limit``; NaN is outside."""
        return self.rel_l2 <= limit.rel_l2 and self.angle <= limit.angle and abs(self.bias) <= limit.bias


def distance(result: Tensor, truth: Tensor) -> Distance:
    """The three errors of ``result`` against ``truth``, computed in float64."""
    result, truth = result.detach().double().flatten(), truth.detach().double().flatten()
    norm = truth.norm()
    if norm == 0:
        same = bool((result == 0).all())
        return Distance(0.0, 0.0, 0.0) if same else Distance(float("inf"), float("inf"), float("inf"))
    error = result - truth
    # From normalised vectors: 1 - cos = |a - b|^2 / 2, without cancellation.
    angle = (result / result.norm() - truth / norm).square().sum() / 2
    bias = error.mean() / truth.abs().mean()
    return Distance(float(error.norm() / norm), float(angle), float(bias))


def largest_error(result: Tensor, truth: Tensor) -> float:
    """max |result - truth|, in float64; NaN counts as infinite."""
    error = (result.detach().double() - truth.detach().double()).abs()
    return float(torch.nan_to_num(error, nan=float("inf")).max())
