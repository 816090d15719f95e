"""The continuous adjoint of torchsde, used the way DiffPure uses it.

One SDE module that owns the networks, `sdeint_adjoint` with Euler steps forward and torchsde's default solver
backward, two output times, no adjoint parameters named, so that every weight becomes one. With ``frozen=True`` the
one-line improvement a careful user would make: the weights need no gradient. Guidance enters the drift as a constant,
as in COUP's published attack, so that its second derivative is missing.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ..errors import MissingExtra
from ..purify.precision import PRECISIONS
from ..schedule import VP
from .plain_network import confidence_gradient

T_EPS = 1e-5


def require_torchsde() -> Any:
    """The package torchsde, or an error that says how to get it."""
    try:
        import torchsde
    except ImportError as error:
        raise MissingExtra("torchsde", "adjoint", "the comparison with its adjoint") from error
    return torchsde


@final
class ReverseVPSDE(nn.Module):
    """Reverse-time VP-SDE on flattened images; solver time s = 1 - t."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(
        self, network: nn.Module, shape: tuple[int, int, int], classifier: nn.Module | None, scale: float
    ) -> None:
        super().__init__()
        self.network, self.shape, self.schedule = network, shape, VP()
        self.classifier, self.scale = classifier, scale
        self.guide = None if classifier is None else confidence_gradient(classifier, differentiable=False)

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        t = 1.0 - s
        low, high = self.schedule.beta_min, self.schedule.beta_max
        beta = low + t * (high - low)
        sigma = torch.sqrt(-torch.expm1(-(low * t + 0.5 * (high - low) * t * t)))
        x = y.view(-1, *self.shape)
        noise_pred = self.network(x, (999.0 * t).expand(len(x)))
        drift = 0.5 * beta * x - beta / sigma * noise_pred
        if self.guide is not None:
            drift = drift + self.scale * beta * self.guide(x)
        return drift.flatten(1)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        beta = self.schedule.beta_min + (1.0 - s) * (self.schedule.beta_max - self.schedule.beta_min)
        return torch.sqrt(beta).expand_as(y)


@final
class AdjointGradient:
    """Gradient of sum(x_out * v) by `torchsde.sdeint_adjoint`.

    Args:
        steps: standard normals [K, B, C, H, W] for a comparison of gradients under the same noise; None for
            torchsde's own Brownian motion.
    """

    def __init__(
        self,
        sde: ReverseVPSDE,
        t: float,
        dt: float,
        frozen: bool,
        device: torch.device,
        steps: Tensor | None = None,
    ) -> None:
        self.sde = sde.requires_grad_(not frozen)
        self.times = torch.tensor([1.0 - t, 1.0 - T_EPS], device=device)
        self.dt, self.frozen, self.steps = dt, frozen, steps

    def gradient(self, x: Tensor, v: Tensor) -> Tensor:
        """Gradient with respect to ``x`` [B, C, H, W] in [-1, 1], in float32 without TF32."""
        with PRECISIONS["fp32"].environment(x.device):
            return self._gradient(x, v)

    def _gradient(self, x: Tensor, v: Tensor) -> Tensor:
        torchsde = require_torchsde()
        leaf = x.detach().requires_grad_(True)
        options = {"adjoint_params": ()} if self.frozen else {}
        out = torchsde.sdeint_adjoint(
            self.sde,
            leaf.flatten(1),
            self.times,
            bm=self._motion(torchsde, x),
            method="euler",
            dt=self.dt,
            **options,
        )[-1]
        (out.view_as(x) * v).sum().backward()
        for weight in self.sde.parameters():
            weight.grad = None
        assert leaf.grad is not None
        return leaf.grad

    def _motion(self, torchsde: Any, x: Tensor) -> Any:
        begin, end = (float(time) for time in self.times)
        if self.steps is None:
            return torchsde.BrownianInterval(
                begin, end, size=(len(x), x[0].numel()), entropy=0, device=x.device
            )
        return _recorded_motion(torchsde, self.steps.flatten(2), begin, end, self.dt)


def _recorded_motion(torchsde: Any, steps: Tensor, begin: float, end: float, dt: float) -> Any:
    """A Brownian motion with given increments over the solver's steps, linear in between."""
    edges = torch.tensor([min(begin + k * dt, end) for k in range(len(steps) + 1)], dtype=torch.float64)
    lengths = edges.diff().clamp_min(0).sqrt().to(steps)
    path = torch.cat([torch.zeros_like(steps[:1]), (lengths.view(-1, 1, 1) * steps).cumsum(0)])

    class Recorded(torchsde.BaseBrownian):
        shape = property(lambda self: path.shape[1:])
        dtype = property(lambda self: path.dtype)
        device = property(lambda self: path.device)
        levy_area_approximation = property(lambda self: "none")

        def __repr__(self) -> str:
            return "Recorded"

        def at(self, time: Any) -> Tensor:
            place = float((float(time) - begin) / dt)
            k = min(max(int(place + 1e-4), 0), len(path) - 2)
            width = float(edges[k + 1] - edges[k]) / dt
            share = min(max((place - k) / width, 0.0), 1.0)
            return torch.lerp(path[k], path[k + 1], share)

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
            return self.at(tb) - self.at(ta)

    return Recorded()
