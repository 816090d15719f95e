"""What an attack differentiates in place of the defence. Decisions are always taken by the deployed defence.

"exact"      the defence itself, every derivative included
"detached"   the defence with its guidance's own derivative dropped: what COUP's released attack computes
"surrogate"  the same method with fewer steps (Lee and Kim, ICCV 2023)
"adjoint"    the continuous adjoint of torchsde, DiffPure's way; needs the extra "adjoint"
"bpda"       the purified image, with the identity as the purifier's derivative (Athalye et al. 2018)
"blind"      the classifier alone, as if there were no purifier

All but the first are weaker; they are here to be compared with, by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import mistake, one_of, positive, whole
from ..kernels import Domain
from ..methods import METHODS, Method
from ..purify import Target
from .adjoint import adjoint_logits
from .gradient import Logits, attack_logits

COUNTS = ("n_steps", "n_iter")
"""Settings of methods that count their steps."""

SURROGATE_SHARE = 5
"""A surrogate takes one step for this many of the defence's unless told otherwise."""


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


def surrogate_method(method: Method, steps: int | None = None, dt: float | None = None) -> Method:
    """``method`` with fewer steps: a fifth of them, or ``steps``, or of length ``dt``.

    Raises:
        ValueError: the method has no number or length of steps to change.
    """
    settings: dict[str, Any] = dict(method.settings)
    counted = next((name for name in COUNTS if name in settings), None)
    if counted is not None and dt is None:
        before = settings[counted]
        settings[counted] = steps or max(1, round(before / SURROGATE_SHARE))
        if "dt" in settings:  # fewer steps of the same length would stop earlier
            settings["dt"] *= before / settings[counted]
    elif counted is None and "dt" in settings and "t" in settings:
        steps = steps or max(1, round(method.steps.n_network_calls / SURROGATE_SHARE))
        settings["dt"] = dt if dt is not None else settings["t"] / steps
    else:
        known = "'surrogate' with surrogate_steps" if counted is not None else "another mode"
        raise ValueError(mistake("gradient", f"{known} for method {method.name}", "'surrogate'"))
    return rebuilt(method, settings)


def rebuilt(method: Method, settings: dict[str, Any]) -> Method:
    """The method of the same name and network with other settings."""
    make: Callable[..., Method] = METHODS[one_of("method", method.name, METHODS)]  # type: ignore[assignment]
    if method.guidance is not None and (networks := method.guidance.networks()):
        # Settings hold what can be printed; the classifier or auxiliary network is the one argument that cannot.
        for name, parameter in inspect.signature(make).parameters.items():
            if name not in settings and "nn.Module" in str(parameter.annotation):
                settings = {**settings, name: networks[0]}
    return make(**settings)


def has_noise(target: Target, gradient: str) -> bool:
    """Whether what the mode differentiates sees noise: the classifier alone does not see the purifier's."""
    return bool(target.own_noise) if gradient == "blind" else target.is_random


def _exact(mode: GradientMode, target: Target) -> Logits:
    return attack_logits(target)


def _detached(mode: GradientMode, target: Target) -> Logits:
    guidance = target.method.guidance
    if guidance is None or not hasattr(guidance, "grad"):
        expected = "a mode that method " + target.method.name + " has; it has no guidance to detach"
        raise ValueError(mistake("gradient", expected, "'detached'", "Use gradient='exact'"))
    cut = replace(guidance, grad="detached")  # type: ignore[type-var]
    return attack_logits(target.with_method(replace(target.method, guidance=cut)))


def _surrogate(mode: GradientMode, target: Target) -> Logits:
    return attack_logits(target.with_method(surrogate_method(target.method, mode.steps, mode.dt)))


def _bpda(mode: GradientMode, target: Target) -> Logits:
    def logits(x: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
        with torch.no_grad():
            purified = target.purify(x, ids, draws, Domain.ATTACK)
        return target.classify(StraightThrough.apply(x, purified))

    return logits


def _blind(mode: GradientMode, target: Target) -> Logits:
    return lambda x, ids, draws: target.classify(x)


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
}
"""Every gradient mode by name."""
