"""Networks whose answer is known: data N(mean, std^2) in every pixel, so that every path has a closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastpure import Denoiser

MEAN, STD = 0.2, 0.3
SHAPE = (2, 4, 4)


def clean_given(x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """E[x0 | alpha x0 + sigma noise = x]."""
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def noise_given(x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """E[noise | alpha x0 + sigma noise = x]."""
    return sigma / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def end_of_flow(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Where the probability flow leads: the same quantile of the data."""
    return MEAN + STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5


class Velocity(nn.Module):
    """E[noise - x0 | x] on (1 - s) x0 + s noise, or its negative for networks whose clean image is at time 1."""

    def __init__(self, data_at: int, time_scale: float) -> None:
        super().__init__()
        self.data_at, self.time_scale = data_at, time_scale

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        time = (labels / self.time_scale).view(-1, 1, 1, 1).to(x.dtype)
        s = time if self.data_at == 0 else 1 - time
        velocity = noise_given(x, 1 - s, s) - clean_given(x, 1 - s, s)
        return velocity if self.data_at == 0 else -velocity


class Displacement(nn.Module):
    """FlowPure's E[x0 - attacked | x] on x0 + s size noise, where the attack is Gaussian of that size."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        s = (1 - labels).view(-1, 1, 1, 1).to(x.dtype)
        return -self.size * noise_given(x, 1.0, s * self.size)


class Consistency(nn.Module):
    """The exact consistency function of the ODE in sigma, from any level to ``sigma_min``."""

    def __init__(self, sigma_min: float) -> None:
        super().__init__()
        self.sigma_min = sigma_min

    def forward(self, y: Tensor, labels: Tensor) -> Tensor:
        level = labels.view(-1, 1, 1, 1).to(y.dtype)
        return MEAN + ((STD**2 + self.sigma_min**2) / (STD**2 + level**2)).sqrt() * (y - MEAN)


def _double(network: nn.Module) -> nn.Module:
    # A weight that nothing reads: it says which dtype the labels are made in.
    network.register_parameter("unread", nn.Parameter(torch.zeros(1, dtype=torch.float64), False))
    return network


def flow_denoiser(data_at: int = 0, time_scale: float = 1000.0) -> Denoiser:
    network = _double(Velocity(data_at, time_scale))
    return Denoiser.from_module(
        network, "flow", image_shape=SHAPE, schedule="flow", data_at=data_at, time_scale=time_scale
    ).eval()


def flowpure_denoiser(size: float) -> Denoiser:
    network = _double(Displacement(size))
    return Denoiser.from_module(
        network, "flow", image_shape=SHAPE, schedule="flowpure", data_at=1, time_scale=1.0
    ).eval()


def consistency_denoiser(sigma_min: float) -> Denoiser:
    return Denoiser.from_module(_double(Consistency(sigma_min)), "consistency", "sigma", SHAPE).eval()
