"""Diffuse and sample back: DDPM, DDIM, DPM-Solver++, EDM and the predictor-corrector of the VP-SDE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Stream
from ..reverse import NoiseSource, Procedure, Process
from ..reverse.noise import normal
from ..reverse.procedure import State
from ..schedule import (
    VP,
    DiscreteVP,
    ancestral,
    dpm_solver_pp,
    forward_diffusion,
    predictor_corrector,
    strided,
)
from ..schedule import edm as edm_table
from ..schedule.edm import alpha_of
from ..schedule.solvers import check_time
from .base import Method, discrete_index, method, spaced_indices


@method(steps="n_steps")
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
    table = forward_diffusion(DiscreteVP().alpha_bar(start)) + table
    return Method.of(table, None, clip_output, resolved={"n_steps": len(indices)})


@method(steps="n_steps")
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
    table = forward_diffusion(DiscreteVP().alpha_bar(start)) + strided(indices, eta, clip_x0)
    return Method.of(table, None, clip_output)


@method(steps="n_steps")
def dpm_solver(
    t: float = 0.1,
    n_steps: int = 10,
    stochastic: bool = False,
    clip_x0: bool = False,
    clip_output: bool = True,
) -> Method:
    """Diffuse to time ``t`` and return with DPM-Solver++(2M) (Lu et al. 2022b), ODE or ``stochastic`` SDE form."""
    table = forward_diffusion(VP().alpha_bar(check_time(t))) + dpm_solver_pp(t, n_steps, stochastic, clip_x0)
    return Method.of(table, None, clip_output)


@method(steps="n_steps")
def edm(
    sigma_max: float = 0.5,
    sigma_min: float = 0.002,
    n_steps: int = 50,
    rho: float = 7.0,
    churn: float = 6.0,
    s_noise: float = 1.007,
    heun: bool = True,
    clip_output: bool = True,
) -> Method:
    """Add noise of size ``sigma_max`` ([-1, 1] units) and come back with Karras et al. 2022's sampler.

    ``churn`` 0 is deterministic, ``heun`` False is Euler. Works with every denoiser: one without noise-level input is
    told the time of the VP schedule that has this noise level.
    """
    steps = edm_table(sigma_max, sigma_min, n_steps, rho, churn, s_noise, heun)
    return Method.of(forward_diffusion(alpha_of(sigma_max) ** 2) + steps, None, clip_output)


@method(steps="n_steps", since={"corrector": True}, only={"snr": lambda given: given["corrector"]})
def vp_sde(
    strength: float = 0.1,
    n_steps: int = 1000,
    snr: float = 0.16,
    clip_output: bool = False,
    corrector: bool = True,
) -> Method:
    """Diffuse, then predictor-corrector sampling of the reverse VP-SDE (Song et al. 2021): two calls per step.

    Starts at the time at position round((1 - strength) n_steps) - 1 of linspace(1, 1e-3), 0.101 by default; every
    step is a Langevin correction with signal-to-noise ratio ``snr`` and an Euler step of 1 / n_steps. The last step
    adds no noise: its mean is returned. The correction's size depends on the image and is differentiated. ``corrector``
    False takes the Euler steps alone, one call each: what ADDT's code defends with where the attacker knows the noise
    (DW-box).
    """
    table = predictor_corrector(strength, n_steps, snr, corrector=corrector)
    return Method.of(table, None, clip_output, PredictorCorrector() if corrector else None)


@dataclass(frozen=True)
class PredictorCorrector(Procedure):
    """Walks the table of ``schedule.predictor_corrector``: row 0 diffuses, odd rows correct, even rows predict.

    A corrector's step is (|z| / |e|)^2 times its row's, with the norms of each image's noise and predicted
    noise. The step depends on the image, and its derivative is part of the exact gradient.
    """

    def begin(self, x: Tensor) -> State:
        """(image,)."""
        return (x,)

    def step(
        self, process: Process, k: int, state: State, context: tuple[Tensor, ...], noise: NoiseSource
    ) -> State:
        """See ``Procedure.step``."""
        (x,), row = state, process.table.rows[k]
        if row.forward:
            return (row.a * x + row.d * normal(noise, k, x, Stream.FORWARD),)
        e = process.denoiser.noise_pred(x, process.conditioning, k)
        if row.d == 0.0:
            return (row.a * x + row.b * e,)
        z = normal(noise, k, x)
        if k % 2 == 0:
            return (row.a * x + row.b * e + row.d * z,)
        ratio = (_norm(z) / _norm(e)).view(-1, 1, 1, 1)
        return (x + row.b * ratio.square() * e + row.d * ratio * z,)

    def image(self, state: State) -> Tensor:
        """The state itself."""
        return state[0]


def _norm(x: Tensor) -> Tensor:
    # Held above zero: a network that predicts no noise at all would otherwise divide by it.
    return x.flatten(1).square().sum(1).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
