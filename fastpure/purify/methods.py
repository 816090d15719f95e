"""Purification methods as data: a table, a guidance and what happens at the two ends.

Each function returns a frozen, printable, hashable ``Method``; none has a loop of its own. A new method is one
function here and one line in ``METHODS``.
"""

from __future__ import annotations

from torch import nn

from ..errors import one_of
from ..guidance import ClassifierConfidence
from ..schedule import (
    VP,
    DiscreteVP,
    StepTable,
    ancestral,
    dpm_solver_pp,
    exponential_sde,
    forward_diffusion,
    probability_flow,
    reverse_sde,
    strided,
)
from ..schedule.solvers import check_time
from .base import Method, discrete_index, number, spaced_indices
from .guided import agdm, gdmp, langevin
from .iterative import adp, likelihood_max
from .retrained import adbm, addt, edm, vp_sde
from .staged import GRADUAL, SURROGATE, gradual, one_shot

__all__ = [
    "GRADUAL",
    "METHODS",
    "SURROGATE",
    "Method",
    "adbm",
    "addt",
    "adp",
    "agdm",
    "coup",
    "coup_unguided",
    "ddim",
    "ddpm",
    "diffpure",
    "diffpure_ode",
    "dpm_solver",
    "edm",
    "gdmp",
    "gradual",
    "langevin",
    "likelihood_max",
    "make",
    "one_shot",
    "spaced_indices",
    "vp_sde",
]


SDE_SOLVERS = {"euler": reverse_sde, "exponential": exponential_sde}
"""Solvers of the reverse SDE."""


def diffpure(t: float = 0.1, dt: float = 1e-3, clip_output: bool = False, solver: str = "euler") -> Method:
    """DiffPure (Nie et al. 2022, algorithm 1): diffuse to time ``t``, solve the reverse SDE back to 1e-5.

    The diffusion uses the discrete chain's signal power after 1000 t steps, the reverse process continuous time
    with steps ``dt``. ``t`` in (0, 1], ``dt`` in (0, t]. ``solver`` "euler" is Euler-Maruyama, as published: its last
    step leaves noise of variance beta dt in the image, so it wants small steps. "exponential" is
    ``schedule.exponential_sde``, the choice for a handful of steps.
    """
    table = forward_diffusion(DiscreteVP().alpha_bar(discrete_index(t))) + _reverse(solver, t, dt)
    settings = (("t", t), ("dt", dt), ("clip_output", clip_output), *_unpublished(solver))
    return Method("diffpure", settings, table, None, clip_output)


def _reverse(solver: str, t: float, dt: float) -> StepTable:
    return SDE_SOLVERS[one_of("solver", solver, SDE_SOLVERS)](t, dt)


def _unpublished(solver: str) -> tuple[tuple[str, str], ...]:
    """The solver as a setting where it is not the published one: run files older than the choice stay valid."""
    return () if solver == "euler" else (("solver", solver),)


def diffpure_ode(t: float = 0.1, dt: float = 1e-3, clip_output: bool = False) -> Method:
    """DiffPure with the probability-flow ODE: only the diffusion of the input is random."""
    table = forward_diffusion(DiscreteVP().alpha_bar(discrete_index(t))) + probability_flow(t, dt)
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
    settings = (
        ("t", t),
        ("dt", dt),
        ("scale", scale),
        ("label", label),
        ("guidance_grad", guidance_grad),
        ("clip_output", clip_output),
        *_unpublished(solver),
    )
    return Method("coup", settings, _reverse(solver, t, dt).guided(weight), guidance, clip_output)


def coup_unguided(
    t: float = 0.1, dt: float = 1e-3, clip_output: bool = True, solver: str = "euler"
) -> Method:
    """COUP without guidance, its ablation: the reverse SDE started at the image itself, not diffused.

    ``solver`` as in ``diffpure``.
    """
    settings = (("t", t), ("dt", dt), ("clip_output", clip_output), *_unpublished(solver))
    return Method("coup_unguided", settings, _reverse(solver, t, dt), None, clip_output)


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
    start = discrete_index(t)
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
    start = discrete_index(t)
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


METHODS = {
    "diffpure": diffpure,
    "diffpure_ode": diffpure_ode,
    "coup": coup,
    "coup_unguided": coup_unguided,
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "gdmp": gdmp,
    "agdm": agdm,
    "adbm": adbm,
    "addt": addt,
    "vp_sde": vp_sde,
    "edm": edm,
    "gradual": gradual,
    "one_shot": one_shot,
    "langevin": langevin,
    "likelihood_max": likelihood_max,
    "adp": adp,
}
"""Every method by name."""


def make(name: str, **settings: object) -> Method:
    """The method called ``name`` with these settings; ValueError lists the known names."""
    return METHODS[one_of("method", name, METHODS)](**settings)  # type: ignore[operator]
