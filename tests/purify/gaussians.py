"""Classes that are Gaussians, whose exact denoiser, densities and posterior are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import fastpure as fp

SHAPE = (1, 2, 2)


class Gaussians(nn.Module):
    """The noise of x = x0 + s n given it, x0 ~ N(m_y, tau_y^2 I) in [-1, 1] units; without class of the mixture."""

    def __init__(self, n: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        means = 0.5 * torch.randn(n, math.prod(SHAPE), generator=generator, dtype=torch.float64)
        self.means = nn.Parameter(means.clamp(-0.9, 0.9))
        self.spreads = nn.Parameter(torch.linspace(0.25, 0.4, n, dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor, classes: Tensor | None = None) -> Tensor:
        """``classes`` int64 [B]; -1 or None for the mixture."""
        flat, s = x.flatten(1)[:, None], s.to(x.dtype)[:, None]
        variance = self.spreads.to(x.dtype).square() + s.square()  # [B, n]
        each = s[..., None] * (flat - self.means) / variance[..., None]  # [B, n, D]
        mixed = (self.log_density(x, s)[..., None].softmax(1) * each).sum(1)
        if classes is None:
            return mixed.view_as(x)
        own = each[torch.arange(len(x)), classes.clamp_min(0)]
        return torch.where((classes >= 0)[:, None], own, mixed).view_as(x)

    def log_density(self, x: Tensor, s: Tensor | float = 0.0) -> Tensor:
        """Of x = x0 + s n under every class, [B, n], up to a constant."""
        flat = x.flatten(1)[:, None]
        variance = self.spreads.square() + (s**2 if isinstance(s, float) else s.square())
        squares = (flat - self.means).square().sum(2)
        return -0.5 * squares / variance - 0.5 * flat.shape[2] * variance.log()


def denoiser(n: int = 3, dtype: torch.dtype = torch.float64, null_class: bool = True) -> fp.Denoiser:
    """The exact denoiser, told the class and the noise level."""
    network = Gaussians(n).to(dtype)
    made = fp.Denoiser.from_module(network, "eps", "sigma", SHAPE, n_classes=n, null_class=null_class)
    return made.eval()


def images(n: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """In [0, 1]."""
    return torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )
