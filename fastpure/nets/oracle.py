"""A denoiser in closed form: the exact noise prediction for a mixture of Gaussians.

With it a purification has a known answer, which is how solvers and guidance are checked without a trained
network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import mistake, positive
from ..schedule import VP


class GaussianMixture(nn.Module):
    """E[noise | x, t] for data from an equal-weight mixture of isotropic Gaussians under the continuous VP schedule.

    Args:
        means: [M, D], the centres in [-1, 1] coordinates, D = C H W.
        std: standard deviation of every component.

    The label is 999 t, as for continuous-time networks; ``forward(x [B, C, H, W], label [B])``.
    """

    means: Tensor

    def __init__(self, means: Tensor, std: float) -> None:
        super().__init__()
        if means.dim() != 2:
            raise ValueError(mistake("means", "of shape [M, D]", f"{list(means.shape)}"))
        self.register_buffer("means", means)
        self.std = positive("std", std)
        self.schedule = VP()
        self.training = False

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """-sigma times the score of the diffused mixture at ``x``; same shape as ``x``."""
        t = label.to(x.dtype) / 999.0
        integral = (
            self.schedule.beta_min * t + 0.5 * (self.schedule.beta_max - self.schedule.beta_min) * t * t
        )
        alpha, sigma = torch.exp(-0.5 * integral)[:, None], torch.sqrt(-torch.expm1(-integral))[:, None]
        variance = (alpha * self.std) ** 2 + sigma**2
        flat = x.flatten(1)
        offset = flat[:, None, :] - alpha[:, :, None] * self.means.to(x.dtype)
        weight = torch.softmax(-offset.square().sum(2) / (2 * variance), 1)
        return (sigma / variance * (weight[:, :, None] * offset).sum(1)).view_as(x)
