"""Deterministic White-box (ADDT, ICLR 2025): attacker and evaluation know the same realisation of the noise."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from ..errors import one_of, positive, whole
from ..purify import Target
from .base import Problem, Proposal, Tick
from .gradient_attack import GradientAttack
from .losses import LOSSES
from .pgd import PGD
from .weakness import Effort

VARIANTS = {"xi,z": "all", "xi": "forward", "z": "reverse"}
"""What is fixed and known: the diffusion noise xi, the noise z of the reverse steps, or both."""


@dataclass(frozen=True, kw_only=True)
class DWPGD(GradientAttack):
    """PGD against a defence whose noise is fixed, judged under that noise.

    DW(xi,z) fixes all noise: one gradient per iteration and one draw decide. DW(xi), also called semi-fixed or
    forward lock, fixes the diffusion of the input; DW(z) the reverse steps. What stays random is averaged over
    ``eot_iter`` draws and judged on ``eval_draws`` fresh ones.

    Attributes:
        variant: "xi,z", "xi" or "z".
        draw: which realisation is fixed.
        step_size: in [0, 1] units; eps / 4 if None, as published (2/255 for 8/255).
        random_start: begin at a random point of the ball, else at the image, as published.
        loss: "ce", "margin" or "dlr".
    """

    eot_iter: int = 10
    variant: str = "xi,z"
    draw: int = 0
    step_size: float | None = None
    random_start: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("variant", self.variant, VARIANTS)
        whole("draw", self.draw, maximum=2**32 - 1)
        one_of("loss", self.loss, LOSSES)
        if self.step_size is not None:
            positive("step_size", self.step_size)

    def conditions(self, target: Target) -> AbstractContextManager[object]:
        """The target with its noise held still."""
        return target.fixed(self.draw, VARIANTS[self.variant])

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        own = super().effort(n_classes)
        return replace(own, noisy=own.noisy and VARIANTS[self.variant] != "all")

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """PGD's last iterate."""
        return self._pgd().propose(problem, tick)

    def _pgd(self) -> PGD:
        step_size = self.step_size if self.step_size is not None else self.eps / 4
        return PGD(**self.shared(), step_size=step_size, random_start=self.random_start, loss=self.loss)
