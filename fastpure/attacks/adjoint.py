"""The continuous adjoint, as DiffPure and COUP differentiate: torchsde solves an adjoint SDE backwards.

It is not the gradient of the purification that is carried out. The backward solver starts at 1e-5 and so runs off
the forward grid, re-creates the states with the drift taken at the wrong end of each step, and treats the
guidance as a constant. It is offered to measure what that costs, not to attack with.
"""

from __future__ import annotations

import bisect
import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MissingExtra, mistake
from ..guidance import GuidanceStep
from ..kernels import Domain, NoiseKeys, Stream, philox_normal
from ..purify import Defense, Target
from ..schedule import VP
from .gradient import Logits

REVERSE_SDES = ("diffpure", "coup", "coup_unguided")
"""Methods whose reverse process is the reverse VP-SDE in continuous time."""

T_END = 1e-5


def adjoint_logits(target: Target) -> Logits:
    """Logits of ``target`` whose derivative is torchsde's adjoint. The noise is that of the exact defence.

    Raises:
        ValueError: the method does not solve the reverse SDE.
        MissingExtra: torchsde is not installed.
    """
    defense, method = target.defense, target.method
    if method.name not in REVERSE_SDES:
        expected = f"a mode that {method.name} has; the adjoint exists for {', '.join(REVERSE_SDES)}"
        raise ValueError(mistake("gradient", expected, "'adjoint'", "Use gradient='exact'"))
    if defense.fixed_draw is None and defense.held is not None:
        expected = "'exact' where only a part of the noise is fixed"
        raise ValueError(mistake("gradient", expected, "'adjoint'"))
    try:
        import torchsde
    except ImportError as error:
        raise MissingExtra("torchsde", "adjoint", "gradient='adjoint'") from error

    def logits(x: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
        draw, domain = target.realisation(draws, Domain.ATTACK)
        keys = NoiseKeys.make(defense.purifier.seed, ids, draw, domain, x.device)
        purified = (_solve(torchsde, defense, keys, 2.0 * x - 1.0) + 1.0) * 0.5
        end = purified.clamp(0.0, 1.0) if method.clip_output else purified
        return target.classify(end, ids, draws, Domain.ATTACK)

    return logits


def _solve(torchsde: Any, defense: Defense, keys: NoiseKeys, state: Tensor) -> Tensor:
    table = defense.purifier.method.table()
    settings: dict[str, Any] = dict(defense.purifier.method.settings)
    first = table.n_forward_rows
    if first:
        row, shape = table.rows[0], tuple(state.shape[1:])
        state = row.a * state + row.d * philox_normal(keys, 0, Stream.FORWARD, shape, dtype=state.dtype)
    sde = _ReverseSDE(defense, float(settings.get("scale", 0.0)), tuple(state.shape[1:]))
    times = [1.0 - row.t for row in table.rows[first:]] + [1.0 - T_END]
    ends = torch.tensor([times[0], times[-1]], dtype=state.dtype, device=state.device)
    out = torchsde.sdeint_adjoint(
        sde,
        state.flatten(1),
        ends,
        bm=_brownian(torchsde, keys, times, first, state),
        method="euler",
        dt=settings["dt"],
        adjoint_params=(),
    )
    return out[-1].view_as(state)


class _ReverseSDE(nn.Module):
    """Reverse VP-SDE on flattened images in solver time s = 1 - t (Nie et al. 2022, eq. 4-6)."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, defense: Defense, scale: float, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.denoiser, self.guidance = defense.purifier.denoiser, defense.purifier.method.guidance
        self.scale, self.shape, self.schedule = scale, shape, VP()
        self.context: tuple[Tensor, ...] | None = None

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """Drift beta x / 2 + beta (score + scale g)."""
        t = min(max(1.0 - float(s), T_END), 1.0)
        x, sigma, beta = y.view(-1, *self.shape), self.schedule.sigma(t), self.schedule.beta(t)
        levels = np.array([999.0 * t]), np.array([math.floor(1000.0 * t + 1e-6)])
        conditioning = self.denoiser.conditioning(
            *levels, np.array([self.schedule.alpha(t)]), np.array([sigma])
        )
        drift = 0.5 * beta * x - beta / sigma * self.denoiser.noise_pred(x, conditioning, 0)
        if self.guidance is not None and self.scale:
            step = GuidanceStep(0, self.schedule.alpha(t), sigma, lambda: torch.zeros_like(x))
            if self.context is None:
                self.context = self.guidance.context(x.detach())
            drift = drift + beta * self.scale * self.guidance.gradient(x.detach(), self.context, step)
        return drift.flatten(1)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """Diffusion sqrt(beta)."""
        t = min(max(1.0 - float(s), T_END), 1.0)
        return torch.full_like(y, math.sqrt(self.schedule.beta(t)))


def _brownian(torchsde: Any, keys: NoiseKeys, times: list[float], first: int, like: Tensor) -> Any:
    """A Brownian path through the increments sqrt(h) z_k of the deployed purifier, straight in between.

    On the forward grid it is the deployed noise; the backward grid, 1e-5 off, cuts each increment in two.
    """
    shape = tuple(like.shape[1:])
    levels = [torch.zeros_like(like)]
    for k, (now, later) in enumerate(itertools.pairwise(times)):
        z = philox_normal(keys, first + k, Stream.REVERSE, shape, dtype=like.dtype)
        levels.append(levels[-1] + math.sqrt(later - now) * z)
    flat = [level.flatten(1) for level in levels]

    def at(s: float) -> Tensor:
        s = min(max(s, times[0]), times[-1])
        k = min(bisect.bisect_right(times, s), len(times) - 1)
        share = (s - times[k - 1]) / (times[k] - times[k - 1])
        return torch.lerp(flat[k - 1], flat[k], share)

    class Path(torchsde.BaseBrownian):
        shape, dtype, device = flat[0].shape, like.dtype, like.device
        levy_area_approximation = "none"

        def __repr__(self) -> str:
            return "Path(philox)"

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
            return at(float(tb)) - at(float(ta)) if tb is not None else at(float(ta))

    return Path()
