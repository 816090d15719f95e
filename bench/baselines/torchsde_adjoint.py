"""The continuous adjoint of torchsde, used the way DiffPure uses it.

One SDE module that owns the network, `sdeint_adjoint` with Euler steps forward and torchsde's default solver
backward, two output times, no adjoint parameters named, so that every weight of the network becomes one. With
``frozen=True`` the one-line improvement a careful user would make: the weights need no gradient.
"""

from __future__ import annotations

import torch
import torchsde
from torch import Tensor, nn

from fastpure.schedule import VP

T_EPS = 1e-5


class ReverseVPSDE(nn.Module):
    """Reverse-time VP-SDE on flattened images; solver time s = 1 - t."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, network: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.shape, self.schedule = network, shape, VP()

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        t = 1.0 - s
        beta = self.schedule.beta_min + t * (self.schedule.beta_max - self.schedule.beta_min)
        integral = (
            self.schedule.beta_min * t + 0.5 * (self.schedule.beta_max - self.schedule.beta_min) * t * t
        )
        sigma = torch.sqrt(-torch.expm1(-integral))
        x = y.view(-1, *self.shape)
        noise_pred = self.network(x, (999.0 * t).expand(len(x)))
        return (0.5 * beta * x - beta / sigma * noise_pred).flatten(1)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        beta = self.schedule.beta_min + (1.0 - s) * (self.schedule.beta_max - self.schedule.beta_min)
        return torch.sqrt(beta).expand_as(y)


class AdjointGradient:
    """Gradient of sum(x_out * v) by `torchsde.sdeint_adjoint`."""

    def __init__(
        self, network: nn.Module, shape: tuple[int, int, int], t: float, dt: float, frozen: bool
    ) -> None:
        self.sde = ReverseVPSDE(network, shape)
        self.sde.requires_grad_(not frozen)
        self.times = torch.tensor([1.0 - t, 1.0 - T_EPS])
        self.dt, self.frozen = dt, frozen

    def __call__(self, x: Tensor, v: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_(True)
        motion = torchsde.BrownianInterval(
            float(self.times[0]), float(self.times[1]), size=(len(x), x[0].numel()), entropy=0
        )
        options = {"adjoint_params": ()} if self.frozen else {}
        out = torchsde.sdeint_adjoint(
            self.sde, leaf.flatten(1), self.times, bm=motion, method="euler", dt=self.dt, **options
        )[-1]
        (out.view_as(x) * v).sum().backward()
        return leaf.grad
