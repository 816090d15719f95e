"""Denoising by the reverse SDE or ODE: DiffPure, and COUP, which adds the classifier's confidence."""

from __future__ import annotations

from torch import nn

from ..errors import one_of
from ..guidance import ClassifierConfidence
from ..schedule import (
    DiscreteVP,
    StepTable,
    exponential_sde,
    forward_diffusion,
    probability_flow,
    reverse_sde,
)
from .base import Method, discrete_index, method, number

SDE_SOLVERS = {"euler": reverse_sde, "exponential": exponential_sde}
"""Solvers of the reverse SDE."""

SOLVER = {"solver": "euler"}
"""The solver of methods older than the choice: the published one."""


@method(steps="dt", since=SOLVER)
def diffpure(t: float = 0.1, dt: float = 1e-3, clip_output: bool = False, solver: str = "euler") -> Method:
    """DiffPure (Nie et al. 2022, algorithm 1): diffuse to time ``t``, solve the reverse SDE back to 1e-5.

    The diffusion uses the discrete chain's signal power after 1000 t steps, the reverse process continuous time
    with steps ``dt``. ``t`` in (0, 1], ``dt`` in (0, t]. ``solver`` "euler" is Euler-Maruyama, as published: its last
    step leaves noise of variance beta dt in the image, so it wants small steps. "exponential" is
    ``schedule.exponential_sde``, the choice for a handful of steps.
    """
    table = forward_diffusion(DiscreteVP().alpha_bar(discrete_index(t))) + _reverse(solver, t, dt)
    return Method.of(table, None, clip_output)


@method(steps="dt")
def diffpure_ode(t: float = 0.1, dt: float = 1e-3, clip_output: bool = False) -> Method:
    """DiffPure with the probability-flow ODE: only the diffusion of the input is random."""
    table = forward_diffusion(DiscreteVP().alpha_bar(discrete_index(t))) + probability_flow(t, dt)
    return Method.of(table, None, clip_output)


@method(network="classifier", steps="dt", since=SOLVER)
def coup(
    classifier: nn.Module,
    t: float = 0.1,
    dt: float = 1e-3,
    scale: float = 1.0,
    label: str = "step",
    guidance_grad: str = "exact",
    clip_output: bool = True,
    solver: str = "euler",
) -> Method:
    """COUP (Zhang et al., arXiv 2408.05900): the reverse SDE of the density tilted by the classifier's confidence.

    The input is not diffused. ``classifier`` maps [0, 1] images to logits and must be in evaluation mode; it is
    the one being defended. ``scale`` is lambda >= 0. ``label`` "step" (published) takes the most probable class
    of the current state at every step, "input" that of the input throughout. ``guidance_grad`` "exact"
    differentiates through the guidance, "detached" reproduces the published attack, which does not. ``solver`` as in
    ``diffpure``.
    """
    weight = number("scale", scale)
    guidance = ClassifierConfidence(classifier, label, guidance_grad)
    return Method.of(_reverse(solver, t, dt).guided(weight), guidance, clip_output)


@method(steps="dt", since=SOLVER)
def coup_unguided(
    t: float = 0.1, dt: float = 1e-3, clip_output: bool = True, solver: str = "euler"
) -> Method:
    """COUP without guidance, its ablation: the reverse SDE started at the image itself, not diffused.

    ``solver`` as in ``diffpure``.
    """
    return Method.of(_reverse(solver, t, dt), None, clip_output)


def _reverse(solver: str, t: float, dt: float) -> StepTable:
    return SDE_SOLVERS[one_of("solver", solver, SDE_SOLVERS)](t, dt)
