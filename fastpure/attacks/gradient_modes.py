"""What an attack differentiates in place of the defence. Decisions are always taken by the deployed defence.

"exact"      the defence itself, every derivative included
"detached"   the defence with its guidance's own derivative dropped: what COUP's released attack computes
"unguided"   the defence as if it had no guidance: guided states, guidance and labels are left out
"surrogate"  the same method with fewer steps (Lee and Kim, ICCV 2023)
"adjoint"    the continuous adjoint of torchsde, DiffPure's way; needs the extra "adjoint"
"bpda"       the purified image, with the identity as the purifier's derivative (Athalye et al. 2018)
"blind"      the classifier alone, as if there were no purifier

All but the first are weaker; they are here to be compared with, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import mistake, one_of, positive, whole
from ..kernels import Domain
from ..purify import Target
from .adjoint import adjoint_logits
from .gradient import Logits, attack_logits
from .ledger import FORWARD


@dataclass(frozen=True)
class GradientMode:
    """A gradient mode with its settings.

    Attributes:
        name: one of ``MODES``.
        steps: network calls of the surrogate.
        dt: step of the surrogate, for methods in continuous time; instead of ``steps``.
    """

    name: str = "exact"
    steps: int | None = None
    dt: float | None = None

    def __post_init__(self) -> None:
        one_of("gradient", self.name, MODES)
        for argument, value in (("surrogate_steps", self.steps), ("surrogate_dt", self.dt)):
            if value is not None and self.name != "surrogate":
                remedy = "Only gradient='surrogate' has this setting"
                raise ValueError(mistake(argument, f"None with gradient={self.name!r}", repr(value), remedy))
        if self.steps is not None:
            whole("surrogate_steps", self.steps, minimum=1)
        if self.dt is not None:
            positive("surrogate_dt", self.dt)
            if self.steps is not None:
                expected = "the only one given of surrogate_steps and surrogate_dt"
                raise ValueError(mistake("surrogate_dt", expected, f"{self.dt} and {self.steps} steps"))

    def logits(self, target: Target) -> Logits:
        """The function to differentiate in place of ``target``.

        Raises:
            ValueError: ``target`` has no part that the mode replaces.
            TypeError: ``target`` is no ``Defense`` and the mode needs one.
        """
        if self.name != "exact" and not target.purifies:
            target.no_purifier(f"gradient={self.name!r}", "Use gradient='exact'")
        return MODES[self.name](self, target)

    def cost(self, target: Target) -> float:
        """What one gradient of one draw costs, in exact gradients of ``target``: its network passes by theirs.

        A pass backward counts as much as one forward; a classifier's own passes count nothing where something
        purifies, unless it has a diffusion model too. BPDA makes the purifier's passes forward only, the classifier
        alone makes none.
        """
        if not target.purifies:
            return 1.0
        total, own = target.network_calls, target.classifier_calls
        if self.name == "surrogate":
            method, fewer = target.method, target.method.coarser(self.steps, self.dt)
            return ((total - own) * fewer.network_calls / method.network_calls + own) / total
        if self.name == "unguided":
            return (
                (total - own) * target.method.weakened(0.0).network_calls / target.method.network_calls + own
            ) / total
        if self.name == "blind":
            return own / total
        return 0.5 + 0.5 * own / total if self.name == "bpda" else 1.0

    def answer_cost(self, target: Target) -> float:
        """The same of one answer without gradient: the passes forward, which are all that BPDA makes in a purifier."""
        return FORWARD if self.name == "bpda" and target.purifies else self.cost(target) * FORWARD


def has_noise(target: Target, gradient: str) -> bool:
    """Whether what the mode differentiates sees noise: the classifier alone does not see the purifier's."""
    if gradient == "blind" and not target.classifier_calls:
        return bool(target.own_noise)
    return target.is_random


def _exact(mode: GradientMode, target: Target) -> Logits:
    return attack_logits(target)


def _detached(mode: GradientMode, target: Target) -> Logits:
    method = target.method
    if method.guidance is None:
        expected = f"a mode that method {method.name} has; it has no guidance to detach"
        raise ValueError(mistake("gradient", expected, "'detached'", "Use gradient='exact'"))
    return attack_logits(target.with_method(method.detached()))


def _unguided(mode: GradientMode, target: Target) -> Logits:
    method = target.method
    if method.guidance is None:
        expected = f"a mode that method {method.name} has; it has no guidance to leave out"
        raise ValueError(mistake("gradient", expected, "'unguided'", "Use gradient='exact'"))
    return attack_logits(target.with_method(method.weakened(0.0)))


def _surrogate(mode: GradientMode, target: Target) -> Logits:
    method = target.method
    if method.step_setting is None or (mode.dt is not None and method.step_setting != "dt"):
        known = "another mode" if method.step_setting is None else "'surrogate' with surrogate_steps"
        raise ValueError(mistake("gradient", f"{known} for method {method.name}", "'surrogate'"))
    return attack_logits(target.with_method(method.coarser(mode.steps, mode.dt)))


def _bpda(mode: GradientMode, target: Target) -> Logits:
    def logits(x: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
        with torch.no_grad():
            purified = target.purify(x, ids, draws, Domain.ATTACK)
        return target.classify(StraightThrough.apply(x, purified), ids, draws, Domain.ATTACK)

    return logits


def _blind(mode: GradientMode, target: Target) -> Logits:
    return lambda x, ids, draws: target.classify(x, ids, draws, Domain.ATTACK)


def _adjoint(mode: GradientMode, target: Target) -> Logits:
    return adjoint_logits(target)


class StraightThrough(torch.autograd.Function):
    """The value of its second argument with the gradient of the first; x + (p - x) would round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, purified: Tensor) -> Tensor:
        """``purified``."""
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor, None]:
        """The cotangent, as if purified were x."""
        return v[0], None


MODES: dict[str, Callable[[GradientMode, Target], Logits]] = {
    "exact": _exact,
    "bpda": _bpda,
    "blind": _blind,
    "surrogate": _surrogate,
    "adjoint": _adjoint,
    "detached": _detached,
    "unguided": _unguided,
}
"""Every gradient mode by name."""
