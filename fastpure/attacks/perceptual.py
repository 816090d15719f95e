"""A budget in a perceptual distance, and LPIPS as that distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import MissingExtra
from .budget import Admissible

Metric = Callable[[Tensor, Tensor], Tensor]
"""(images, originals), both [B, C, H, W] in [0, 1], to distances [B]; differentiable, 0 for equal images."""

HALVINGS = 20


@dataclass(frozen=True)
class PerceptualBudget(Admissible):
    """All images in [0, 1] at a perceptual distance of at most ``bound``."""

    bound: float
    metric: Metric

    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        """The admissible point furthest along the line from the original, found by halving."""
        candidate = candidate.clamp(0.0, 1.0)
        low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
        good, at = self.admits(self.distance(candidate, x)), x.clone()
        at[good] = candidate[good]
        for _ in range(HALVINGS if not bool(good.all()) else 0):
            middle = (low + high) / 2
            point = (x + middle.view(-1, 1, 1, 1) * (candidate - x)).clamp(0.0, 1.0)
            inside = self.admits(self.distance(point, x)) & ~good
            at[inside] = point[inside]
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return at

    @torch.no_grad()
    def distance(self, candidate: Tensor, x: Tensor) -> Tensor:
        """The perceptual distance of each image, float64 [B]."""
        return self.metric(candidate, x).double() if len(x) else x.new_zeros(0).double()

    def admits(self, distance: Tensor) -> Tensor:
        """At most ``bound``."""
        return distance <= self.bound


@cache
def lpips_vgg(device: str) -> Metric:
    """LPIPS with VGG features (Zhang et al., CVPR 2018) through the package lpips; its weights are downloaded by it.

    Raises:
        MissingExtra: lpips, or the torchvision it needs, is not installed.
    """
    try:
        import lpips
    except ImportError as error:
        raise MissingExtra(f"lpips ({error})", "perceptual", "the LPIPS distance") from error
    network = lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)

    def metric(images: Tensor, originals: Tensor) -> Tensor:
        three = [u if u.shape[1] == 3 else u.expand(-1, 3, -1, -1) for u in (images, originals)]
        return network(*three, normalize=True).flatten()

    return metric
