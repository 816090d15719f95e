"""Likelihood maximisation, with COUP's confidence term as an option.

Chen et al. 2023, "Robust Classification via a Single Diffusion Model"; Zhang et al., arXiv 2408.05900.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import mistake, positive, whole
from ..guidance import ClassifierConfidence
from ..reverse import NoiseSource, Procedure, Process
from ..reverse.noise import normal
from ..reverse.procedure import State, steered
from ..schedule import VP, Row, StepTable
from ..schedule.edm import level as noise_level
from .base import Method, method, number

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Adam's constants (Kingma and Ba 2015)."""


@method(
    network="classifier",
    steps="n_iter",
    only=dict.fromkeys(("confidence", "guidance_grad"), lambda given: given["classifier"] is not None),
)
def likelihood_max(
    n_iter: int = 5,
    lr: float = 0.1,
    sigma: tuple[float, float] = (0.4, 0.6),
    classifier: nn.Module | None = None,
    confidence: float = 1.0,
    guidance_grad: str = "exact",
    clip_output: bool = True,
) -> Method:
    """Likelihood maximisation (Chen et al. 2023): ``n_iter`` Adam steps on the denoising loss at noise ``sigma``.

    loss = mean (D(x + sigma n; sigma) - x)^2 per image, sigma uniform in its range and n fresh at every step, ``lr`` in
    [-1, 1] units. An exact attack differentiates D twice and needs a denoiser for which that is defined. The
    published projection onto an L2 ball of radius 100 is never active and is left out.

    With a ``classifier`` the loss is lowered by ``confidence`` times the log-probability of the most probable class:
    COUP's CIFAR-100 experiment (Zhang et al., arXiv 2408.05900), whose constants are not published.
    """
    whole("n_iter", n_iter, minimum=1)
    positive("lr", lr)
    if not isinstance(sigma, tuple | list) or len(sigma) != 2:
        raise ValueError(mistake("sigma", "two noise levels (low, high)", repr(sigma)))
    low, high = (positive("sigma", value) for value in sigma)
    if low > high:
        raise ValueError(mistake("sigma", "(low, high) with low <= high", repr(sigma)))
    guidance, weight, note = None, 0.0, ""
    if classifier is not None:
        guidance, weight = (
            ClassifierConfidence(classifier, "step", guidance_grad),
            number("confidence", confidence),
        )
        note = "COUP's constants for this are not published"
    middle = 0.5 * (low + high)
    # Adam has no rows of its own; these say how many calls there are, at which level about, and that they draw noise.
    row = Row(a=1.0, b=-lr, d=middle, **noise_level(middle, VP()))  # type: ignore[arg-type]
    procedure = LikelihoodAscent(lr, low, high, weight)
    table, resolved = StepTable((row,) * n_iter), {"sigma": (low, high)}
    return Method.of(table, guidance, clip_output, procedure, note=note, resolved=resolved)


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

    def passes(self, table: StepTable) -> int:
        """The way back of every row."""
        return table.n_network_calls

    def asked_level(self, table: StepTable) -> float:
        """The upper end of the range, of which the rows have the middle."""
        return self.sigma_high

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
