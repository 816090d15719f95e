"""Few steps with networks that know the way: rectified flow, FlowPure, consistency functions."""

from __future__ import annotations

from ..errors import mistake, one_of, positive, whole
from ..schedule import (
    VP,
    Row,
    StepTable,
    consistency_steps,
    forward_diffusion,
    rectified_flow,
    straight_path,
)
from ..schedule.edm import alpha_of
from .base import Method, method, number


@method(steps="n_steps")
def flow(t: float = 0.3, n_steps: int = 10, solver: str = "euler", clip_output: bool = True) -> Method:
    """Rectified flow (Liu et al. 2022): (1 - t) image + t noise, then back along the ODE in ``n_steps`` equal steps.

    ``t`` in (0, 1) is the time of the straight path, whose noise relative to the image is t / (1 - t). ``solver``
    "euler" or "heun" (two calls per step but the last). For a flow network, or one that is told the noise level.
    """
    table = rectified_flow(t, n_steps, one_of("solver", solver, ("euler", "heun")) == "heun")
    forward = StepTable((Row(a=1.0 - t, d=float(t), forward=True),))
    return Method.of(forward + table, None, clip_output, schedule="flow")


@method(steps="n_steps")
def flowpure(sigma: float = 0.5, start: float = 0.0, n_steps: int = 10, clip_output: bool = True) -> Method:
    """FlowPure (Collaert et al. 2025): x + (1 - start) sigma n, then Euler's x' = x + h v(x, t) from t = start to 1.

    ``sigma`` is the noise in units of [-1, 1]: that of the training for a network trained on Gaussian perturbations, 0
    for one trained on attacked images, which it takes as they come. Needs a network of schedule "flowpure".
    """
    table = straight_path(start, n_steps)
    noise = (1.0 - start) * number("sigma", sigma)
    if noise > 0.0:
        table = StepTable((Row(a=1.0, d=noise, forward=True),)) + table
    return Method.of(table, None, clip_output, schedule="flowpure")


@method(steps="n_steps")
def consistency(
    sigma: float = 0.5,
    n_steps: int = 1,
    sigma_min: float = 0.002,
    rho: float = 7.0,
    clip_x0: bool = True,
    clip_output: bool = True,
) -> Method:
    """A consistency model (Song et al. 2023, algorithm 1): add noise of size ``sigma`` ([-1, 1] units), D(x, sigma).

    Every further step adds noise again, at the next of ``n_steps`` levels of Karras et al.'s grid from ``sigma`` to
    ``sigma_min`` (the level at which the network was made the identity), and asks again. ``clip_x0`` clamps every
    answer to [-1, 1]. Needs a consistency function; ``one_shot`` and ``edm`` are for ordinary denoisers.
    """
    limit = VP().sigma(1.0) / VP().alpha(1.0)
    if positive("sigma", sigma) > limit:
        raise ValueError(mistake("sigma", f"at most {limit:g}", sigma))
    if positive("sigma_min", sigma_min) >= sigma:
        raise ValueError(mistake("sigma_min", f"below sigma = {sigma}", sigma_min))
    whole("n_steps", n_steps, minimum=1)
    steps = consistency_steps(sigma, sigma_min, n_steps, rho, clip_x0)
    return Method.of(
        forward_diffusion(alpha_of(sigma) ** 2) + steps, None, clip_output, schedule="consistency"
    )
