"""Likelihood maximisation, with COUP's confidence term as an option.

Chen et al. 2023, "Robust Classification via a Single Diffusion Model"; Zhang et al., arXiv 2408.05900.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...reverse import NoiseSource, Procedure, Process
from ...reverse.noise import normal
from ...reverse.procedure import State, steered

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Adam's constants (Kingma and Ba 2015)."""


@dataclass(frozen=True)
class LikelihoodAscent(Procedure):
    """Adam on mean (D(x + sigma n; sigma) - x)^2 - ``confidence`` log max_c p_c(x), per image.

    sigma is uniform in [``sigma_low``, ``sigma_high``], anew for every image and step; the gradient goes through
    both occurrences of x, so an exact attack needs second derivatives of D. sigma is Phi of the first number of
    the guidance noise; n is the row's noise.
    """

    lr: float
    sigma_low: float
    sigma_high: float
    confidence: float = 0.0

    def begin(self, x: Tensor) -> State:
        """(image, first moment, second moment)."""
        return x, torch.zeros_like(x), torch.zeros_like(x)

    def step(
        self, process: Process, k: int, state: State, context: tuple[Tensor, ...], noise: NoiseSource
    ) -> State:
        """See ``Procedure.step``; one step of Adam."""
        x, first, second = state
        g = self._gradient(process, k, x, noise)
        if self.confidence != 0.0:
            g = g - self.confidence * steered(process, k, x, context, noise)
        first = BETA1 * first + (1.0 - BETA1) * g
        second = BETA2 * second + (1.0 - BETA2) * g * g
        n = k + 1
        scale = _sqrt(second / (1.0 - BETA2**n)) + EPS
        return x - self.lr * (first / (1.0 - BETA1**n)) / scale, first, second

    def image(self, state: State) -> Tensor:
        """The first part."""
        return state[0]

    def _gradient(self, process: Process, k: int, x: Tensor, noise: NoiseSource) -> Tensor:
        recording = torch.is_grad_enabled() and x.requires_grad
        width = self.sigma_high - self.sigma_low
        chance = noise.guidance(k, x)[:, 0, 0, 0].double()
        sigma = self.sigma_low + width * torch.special.ndtr(chance)
        n = normal(noise, k, x)
        with torch.enable_grad():
            leaf = x if recording else x.detach().requires_grad_(True)
            noised = leaf + sigma.to(x.dtype).view(-1, 1, 1, 1) * n
            # The sum, divided afterwards: the mean's gradient would underflow in float16 networks.
            loss = (process.denoiser.clean_image(noised, sigma) - leaf).square().sum()
            (g,) = torch.autograd.grad(loss, leaf, create_graph=recording)
        return g / x[0].numel()


def _sqrt(v: Tensor) -> Tensor:
    # Where no gradient has ever arrived the root has no derivative; taking 0 there keeps Adam's own slope 1 / EPS.
    reached = v > 0
    return torch.where(reached, v, torch.ones_like(v)).sqrt() * reached
