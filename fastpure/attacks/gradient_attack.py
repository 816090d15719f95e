"""What all attacks that follow gradients share: iterations, draws, the gradient mode, the random start."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..errors import whole
from ..kernels import Domain, NoiseKeys, Stream, philox_uniform
from .base import NormAttack, Problem
from .gradient import Logits
from .gradient_modes import GradientMode, has_noise
from .weakness import Effort


@dataclass(frozen=True, kw_only=True)
class GradientAttack(NormAttack):
    """An attack in an lp ball that follows gradients averaged over draws.

    Attributes:
        n_iter: iterations.
        eot_iter: draws averaged per iteration, fresh ones each time; 1 is used where nothing is random.
        gradient: what is differentiated, a name of ``gradient_modes.MODES``; decisions are the defence's own.
        surrogate_steps: for gradient="surrogate", its network calls; a fifth of the defence's if None.
        surrogate_dt: for gradient="surrogate", its step in diffusion time, instead.
    """

    n_iter: int = 20
    eot_iter: int = 20
    gradient: str = "exact"
    surrogate_steps: int | None = None
    surrogate_dt: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_iter", self.n_iter, minimum=1)
        whole("eot_iter", self.eot_iter, minimum=1)
        self.mode()

    def mode(self) -> GradientMode:
        """The gradient mode with its settings."""
        return GradientMode(self.gradient, self.surrogate_steps, self.surrogate_dt)

    def shared(self) -> dict[str, Any]:
        """The settings that every gradient attack has, for handing them on to another."""
        return {field.name: getattr(self, field.name) for field in fields(GradientAttack)}

    def logits(self, problem: Problem) -> Logits:
        """The function this attack differentiates."""
        return self.mode().logits(problem.target)

    def n_draws(self, problem: Problem) -> int:
        """Draws per iteration; 1 where what is differentiated has no noise to average."""
        return self.eot_iter if has_noise(problem.target, self.gradient) else 1

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_iter

    def eot(self) -> int:
        """See ``Attack.eot``."""
        return self.eot_iter

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return Effort(steps=self.n_iter, draws=self.eot_iter, noisy=self.gradient != "blind")

    def uniform(self, problem: Problem, draw: int = 0) -> Tensor:
        """Noise in (0, 1) for a random start, [B, C, H, W]: a function of the seed, the sample ids and ``draw``."""
        shape = tuple(problem.x.shape[1:])
        keys = NoiseKeys.make(
            seed=self.seed, sample_ids=problem.ids, draw=draw, domain=Domain.ATTACK, device=problem.x.device
        )
        return philox_uniform(keys, 0, Stream.ATTACK_START, shape).to(torch.float32)
