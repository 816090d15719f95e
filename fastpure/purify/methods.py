"""Purification methods as data: a table, a guidance and what happens at the two ends.

Each function returns a frozen, printable, hashable ``Method``; none has a loop of its own. A new method is one
function here and one line in ``METHODS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

from ..errors import mistake, one_of, whole
from ..guidance import ClassifierConfidence, Guidance
from ..schedule import (
    VP,
    DiscreteVP,
    StepTable,
    ancestral,
    dpm_solver_pp,
    forward_diffusion,
    probability_flow,
    reverse_sde,
    strided,
)
from ..schedule.solvers import check_time


@dataclass(frozen=True)
class Method:
    """How to purify. ``settings`` are the arguments it was made with, for printing and for stored results.

    ``clip_output`` clamps the purified image to [0, 1]; published COUP does, published DiffPure does not.
    """

    name: str
    settings: tuple[tuple[str, object], ...]
    steps: StepTable = field(repr=False)
    guidance: Guidance | None = field(default=None, repr=False)
    clip_output: bool = False

    def table(self) -> StepTable:
        """The step table, one row per step, the diffusion of the input (if any) being row 0."""
        return self.steps

    def __str__(self) -> str:
        text = ", ".join(f"{name}={value!r}" for name, value in self.settings)
        return f"{self.name}({text}): {self.steps.n_network_calls} network calls"


def _discrete_index(t: float, n: int = 1000) -> int:
    """Zero-based index of the step that ends at time ``t``: 99 for t = 0.1 of 1000 steps."""
    steps = int(np.floor(check_time(t) * n + 1e-6))
    if steps < 1:
        raise ValueError(mistake("t", f"at least one of {n} discrete steps, {1 / n}", t))
    return steps - 1


def diffpure(t: float = 0.1, dt: float = 1e-3, clip_output: bool = False) -> Method:
    """DiffPure (Nie et al. 2022, algorithm 1): diffuse to time ``t``, solve the reverse SDE back to 1e-5.

    The diffusion uses the discrete chain's signal power after 1000 t steps, the reverse process continuous time
    with Euler-Maruyama steps ``dt``, as published. ``t`` in (0, 1], ``dt`` in (0, t].
    """
    table = forward_diffusion(DiscreteVP().alpha_bar(_discrete_index(t))) + reverse_sde(t, dt)
    return Method("diffpure", (("t", t), ("dt", dt), ("clip_output", clip_output)), table, None, clip_output)


def diffpure_ode(t: float = 0.1, dt: float = 1e-3, clip_output: bool = False) -> Method:
    """DiffPure with the probability-flow ODE: only the diffusion of the input is random."""
    table = forward_diffusion(DiscreteVP().alpha_bar(_discrete_index(t))) + probability_flow(t, dt)
    settings = (("t", t), ("dt", dt), ("clip_output", clip_output))
    return Method("diffpure_ode", settings, table, None, clip_output)


def coup(
    classifier: nn.Module,
    t: float = 0.1,
    dt: float = 1e-3,
    scale: float = 1.0,
    label: str = "step",
    guidance_grad: str = "exact",
    clip_output: bool = True,
) -> Method:
    """COUP (Zhang et al., arXiv 2408.05900): the reverse SDE of the density tilted by the classifier's confidence.

    The input is not diffused. ``classifier`` maps [0, 1] images to logits and must be in evaluation mode; it is
    the one being defended. ``scale`` is lambda >= 0. ``label`` "step" (published) takes the most probable class
    of the current state at every step, "input" that of the input throughout. ``guidance_grad`` "exact"
    differentiates through the guidance, "detached" reproduces the published attack, which does not.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(mistake("scale", "a number >= 0", f"{type(scale).__name__} {scale!r}"))
    if not 0 <= scale < float("inf"):
        raise ValueError(mistake("scale", "a finite number >= 0", scale))
    guidance = ClassifierConfidence(classifier, label, guidance_grad)
    settings = (
        ("t", t),
        ("dt", dt),
        ("scale", scale),
        ("label", label),
        ("guidance_grad", guidance_grad),
        ("clip_output", clip_output),
    )
    return Method("coup", settings, reverse_sde(t, dt).guided(float(scale)), guidance, clip_output)


def coup_unguided(t: float = 0.1, dt: float = 1e-3, clip_output: bool = True) -> Method:
    """COUP without guidance, its ablation: the reverse SDE started at the image itself, not diffused."""
    settings = (("t", t), ("dt", dt), ("clip_output", clip_output))
    return Method("coup_unguided", settings, reverse_sde(t, dt), None, clip_output)


def ddpm(
    t: float = 0.1,
    variance: str = "small",
    clip_x0: bool = True,
    n_steps: int | None = None,
    clip_output: bool = True,
) -> Method:
    """Diffuse to time ``t`` and sample back with DDPM (Ho et al. 2020), 1000 t steps or ``n_steps`` of them.

    ``variance`` "small" is the posterior variance, "large" is beta. ``clip_x0`` clamps the predicted clean image
    to [-1, 1] at every step. Respaced steps are spread evenly and start at the noisiest ("trailing").
    """
    start = _discrete_index(t)
    indices = spaced_indices(start, n_steps if n_steps is not None else start + 1, "trailing")
    table = ancestral(indices, variance, clip_x0)
    settings = (
        ("t", t),
        ("variance", variance),
        ("clip_x0", clip_x0),
        ("n_steps", len(indices)),
        ("clip_output", clip_output),
    )
    table = forward_diffusion(DiscreteVP().alpha_bar(start)) + table
    return Method("ddpm", settings, table, None, clip_output)


def ddim(
    t: float = 0.1,
    n_steps: int = 10,
    eta: float = 0.0,
    clip_x0: bool = True,
    spacing: str = "trailing",
    clip_output: bool = True,
) -> Method:
    """Diffuse to time ``t`` and sample back with DDIM (Song et al. 2021) in ``n_steps`` steps.

    ``eta`` in [0, 1]: 0 is deterministic, 1 is DDPM. ``spacing``: "trailing" takes steps 99, 89, ..., 9 for ten
    of a hundred, "linspace" 99, 88, ..., 0.
    """
    start = _discrete_index(t)
    indices = spaced_indices(start, n_steps, spacing)
    settings = (
        ("t", t),
        ("n_steps", n_steps),
        ("eta", eta),
        ("clip_x0", clip_x0),
        ("spacing", spacing),
        ("clip_output", clip_output),
    )
    table = forward_diffusion(DiscreteVP().alpha_bar(start)) + strided(indices, eta, clip_x0)
    return Method("ddim", settings, table, None, clip_output)


def dpm_solver(
    t: float = 0.1,
    n_steps: int = 10,
    stochastic: bool = False,
    clip_x0: bool = False,
    clip_output: bool = True,
) -> Method:
    """Diffuse to time ``t`` and return with DPM-Solver++(2M) (Lu et al. 2022b), ODE or ``stochastic`` SDE form."""
    table = forward_diffusion(VP().alpha_bar(check_time(t))) + dpm_solver_pp(t, n_steps, stochastic, clip_x0)
    settings = (
        ("t", t),
        ("n_steps", n_steps),
        ("stochastic", stochastic),
        ("clip_x0", clip_x0),
        ("clip_output", clip_output),
    )
    return Method("dpm_solver", settings, table, None, clip_output)


def spaced_indices(start: int, n_steps: int, spacing: str) -> list[int]:
    """``n_steps`` of the indices start..0, descending.

    "trailing" ends each block of equal length and so begins at ``start``; "linspace" includes both ends.
    """
    one_of("spacing", spacing, ("trailing", "linspace"))
    whole("n_steps", n_steps, minimum=1, maximum=start + 1)
    if spacing == "linspace":
        return [round(i) for i in np.linspace(start, 0, n_steps)]
    return [round((start + 1) * (n_steps - k) / n_steps) - 1 for k in range(n_steps)]


METHODS = {
    "diffpure": diffpure,
    "diffpure_ode": diffpure_ode,
    "coup": coup,
    "coup_unguided": coup_unguided,
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
}
"""Every method by name."""


def make(name: str, **settings: object) -> Method:
    """The method called ``name`` with these settings; ValueError lists the known names."""
    return METHODS[one_of("method", name, METHODS)](**settings)  # type: ignore[operator]
