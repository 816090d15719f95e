"""Purification by Langevin dynamics of an energy-based model, without a diffusion."""

from __future__ import annotations

from torch import nn

from ..errors import positive, whole
from ..guidance import EnergyDescent
from ..schedule import Row, StepTable
from .base import Method, method


@method(network="energy", steps="n_steps")
def ebm_langevin(
    energy: nn.Module,
    n_steps: int = 1500,
    tau: float = 0.01,
    guidance_grad: str = "exact",
    clip_output: bool = False,
) -> Method:
    """Langevin dynamics of an energy (Hill et al. 2021): x - (``tau``^2 / 2) gradient of U + tau z, from the input.

    ``energy`` maps images in [-1, 1], [B, C, H, W], to energies [B]; ``tau`` is in its units. Any such network in
    evaluation mode will do: ``fastpure.load_energy`` has a small one, "digits", and reads those that Hill et al.
    published, whose own module answers U times ``tau``^2 / 2 instead. The purifier's denoiser is not called and only
    says the images' shape. Hill et al. average the logits of several runs, which is the evaluation protocol's part.
    ``guidance_grad`` "exact" differentiates every step, the Hessian of U included; "detached" takes the gradient of
    U to be a constant, so that what an attacker sees is the identity.

    ``n_steps``, ``tau`` and the unclamped output are those of their code. ``coarser`` steps are as long
    as these, so fewer steps go less far.
    """
    step = positive("tau", tau)
    row = Row(a=1.0, c=0.5 * step * step, d=step)
    table = StepTable((row,) * whole("n_steps", n_steps, minimum=1))
    return Method.of(table, EnergyDescent(energy, guidance_grad), clip_output)
