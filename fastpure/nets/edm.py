"""Networks that are told the noise level instead of a time: EDM's preconditioning, as a noise prediction.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), table 1: the denoiser is
D(y; s) = c_skip y + c_out F(c_in y, c_noise) for y = x0 + s noise. Our state is x = alpha x0 + sigma noise, so
y = x / alpha and s = sigma / alpha (``Denoiser`` with time input "sigma"), and the noise is (y - D) / s. That
quotient is formed here on paper, because it cancels where s is small:

* "vp": noise = F(y / sqrt(1 + s^2), 999 t(s)), t(s) being the time at which the continuous VP schedule has
  that noise level. For VP states the network just sees x.
* "edm": noise = s / (s^2 + sd^2) y - sd / sqrt(s^2 + sd^2) F(y / sqrt(s^2 + sd^2), ln(s) / 4), sd = sigma_data.
* "consistency": D itself, the consistency function of Song et al., "Consistency Models" (2023, appendix C), whose
  scalings are c_skip = sd^2 / ((s - m)^2 + sd^2) and c_out = sd (s - m) / sqrt(s^2 + sd^2) with c_in as for
  "edm" and c_noise = 250 ln(s), so that D(y; m) = y at m = sigma_min. Below m it is the identity.
* "cosine": as "vp", for networks trained on the cosine schedule of Nichol and Dhariwal (2021) in ``cosine_steps``
  steps and told 1000 i / cosine_steps: i is where that schedule has the noise level s, not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import mistake, one_of, positive, whole
from ..schedule import VP
from .adm import ADM, ADMConfig
from .base import HoistedNetwork
from .ddpmpp import DDPMpp, DDPMppConfig

PRECONDITIONINGS = ("vp", "edm", "cosine", "consistency")
BODIES: dict[str, tuple[type[Any], type[Any]]] = {
    "ddpmpp": (DDPMppConfig, DDPMpp),
    "adm": (ADMConfig, ADM),
}
_OFFSET = 0.008


@dataclass(frozen=True)
class EDMConfig:
    """A network and its preconditioning.

    Attributes:
        network: the configuration of F, or a dict of its fields with "architecture".
        preconditioning: one of ``PRECONDITIONINGS``.
        sigma_data: standard deviation of the data, for "edm" and "consistency".
        cosine_steps: steps of the schedule, for "cosine".
        beta_min, beta_max: rates of the schedule at its two ends, for "vp".
        sigma_min: noise level of the images at which D is the identity, for "consistency".
    """

    network: DDPMppConfig | ADMConfig
    preconditioning: str = "edm"
    sigma_data: float = 0.5
    cosine_steps: int = 4000
    beta_min: float = 0.1
    beta_max: float = 20.0
    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        one_of("preconditioning", self.preconditioning, PRECONDITIONINGS)
        positive("sigma_data", self.sigma_data)
        positive("sigma_min", self.sigma_min)
        whole("cosine_steps", self.cosine_steps, 2, 1_000_000)
        VP(self.beta_min, self.beta_max)  # checks them
        if isinstance(self.network, Mapping):
            fields = dict(self.network)
            kind = BODIES[one_of("architecture", fields.pop("architecture", None), BODIES)][0]
            object.__setattr__(self, "network", kind(**fields))
        if not isinstance(self.network, tuple(kind for kind, _ in BODIES.values())):
            expected = "a configuration of F, or a dict of its fields"
            raise TypeError(mistake("network", expected, type(self.network).__name__))

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        return self.network.image_size

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.network.channels

    @property
    def prediction(self) -> str:
        """What the whole answers: the noise, or for "consistency" the image."""
        return "consistency" if self.preconditioning == "consistency" else "eps"

    @property
    def time_input(self) -> str:
        """The label is the noise level."""
        return "sigma"

    @property
    def learned_sigma(self) -> bool:
        """A learned variance is dropped inside, so never seen."""
        return False


class EDM(HoistedNetwork):
    """Predicts the noise in y [B, C, H, W] = x0 + s noise, given s [B], or its image; see the head of this file.

    ``network`` is F, one of our own networks, whose fast paths therefore apply.
    """

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        self.config = config
        self.network = next(
            kind(config.network) for c, kind in BODIES.values() if isinstance(config.network, c)
        )

    def initialise(self, seed: int, init_scale: float = 1.0) -> None:
        """Fill the weights of F."""
        self.network.initialise(seed, init_scale)

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_in, c_noise, factor of y, factor of F) in float64 for noise levels s [N]."""
        s = s.double()
        if self.config.preconditioning == "edm":
            width = (s * s + self.config.sigma_data**2).sqrt()
            return 1 / width, s.log() / 4, s / width**2, -self.config.sigma_data / width
        if self.config.preconditioning == "consistency":
            width = (s * s + self.config.sigma_data**2).sqrt()
            above = (s - self.config.sigma_min).clamp_min(0.0)
            of_y = self.config.sigma_data**2 / (above * above + self.config.sigma_data**2)
            return 1 / width, 250 * s.log(), of_y, self.config.sigma_data * above / width
        c_in = torch.rsqrt(1 + s * s)
        integral = torch.log1p(s * s)
        if self.config.preconditioning == "vp":
            # The positive root of the quadratic, written so that nothing cancels.
            low, slope = self.config.beta_min, self.config.beta_max - self.config.beta_min
            root = (low**2 + 2 * slope * integral).sqrt()
            c_noise = 999 * 2 * integral / (low + root)
        else:
            start = math.cos(_OFFSET / (1 + _OFFSET) * math.pi / 2)
            t = torch.acos(c_in * start) * (2 / math.pi) * (1 + _OFFSET) - _OFFSET
            steps = self.config.cosine_steps
            c_noise = (steps * t - 1).clamp(0, steps - 1) * (1000 / steps)
        return c_in, c_noise, torch.zeros_like(s), torch.ones_like(s)

    def embedding(self, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Embeddings [N, S + 3] of noise levels [N] and classes: F's own, then c_in and the factors of y and F.

        The factors are too few to save anything by rounding them to half precision, so all are float32 at least.
        """
        c_in, c_noise, of_y, of_f = self.coefficients(labels)
        own = self.network.embedding(c_noise, classes)
        wide = torch.promote_types(own.dtype, torch.float32)
        return torch.cat([own.to(wide), torch.stack([c_in, of_y, of_f], 1).to(wide)], 1)

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The answer [B, C, H, W] for y [B, C, H, W] and embedding [1 or B, S + 3]."""
        c_in, of_y, of_f = (column[:, None, None, None] for column in embedding[:, -3:].unbind(1))
        output = self.network.body((x * c_in).to(x.dtype), embedding[:, :-3].to(x.dtype))
        output = output[:, : self.config.channels] * of_f
        return output if self.config.preconditioning in ("vp", "cosine") else output + of_y * x

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """The answer [B, C, H, W] for y [B, C, H, W], noise levels [B] and, if given, classes int64 [B]."""
        return self.body(x, self.embedding(labels, classes))
