"""Losses that train a denoiser from nothing: continuous VP, discrete VP, EDM."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, final

from torch import Tensor, nn

from ...schedule import VP
from ..batches import Batch, Purpose
from .base import Augment
from .levels import DiscreteTimes, EdmLevels, check_times, diffuse


@final
@dataclass(frozen=True)
class DenoiserLoss:
    """Noise prediction for the continuous VP schedule (Song et al. 2021), optionally up to ``t_max`` only.

    For x0 = 2 image - 1, t ~ U[t_min, t_max], z ~ N(0, I): the mean over pixels of
    ``(network(alpha(t) x0 + sigma(t) z, 999 t) - z)^2``. Purification to time t* never asks for
    later times, so a small network does better when ``t_max`` is little above t*.

    Raises:
        ValueError: not ``0 < t_min < t_max <= 1``.
    """

    t_max: float = 1.0
    t_min: float = 1e-5
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)
    schedule: VP = VP()  # noqa: RUF009 (a frozen value)

    def __post_init__(self) -> None:
        check_times(self.t_min, self.t_max)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x0 = 2 * self.augment(batch.images, batch.random) - 1
        times = self.t_min + (self.t_max - self.t_min) * batch.random.uniform(Purpose.TIME)[:, 0]
        noise = batch.random.normal(Purpose.NOISE, (x0.shape[1], x0.shape[2], x0.shape[3]))
        labels = (999 * times).to(x0.device, x0.dtype)
        predicted = model(diffuse(x0, times, noise, self.schedule), labels)
        return (predicted.float() - noise).square().flatten(1).mean(1)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "denoiser", **asdict(self)}


@final
@dataclass(frozen=True)
class DiscreteDenoiserLoss:
    """Noise prediction for the discrete VP chain (Ho et al. 2020), optionally up to ``t_max`` only.

    As `DenoiserLoss`, with a zero-based index instead of a time, which is also the network's label.
    """

    levels: DiscreteTimes = DiscreteTimes()  # noqa: RUF009 (a frozen value)
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)

    @property
    def t_max(self) -> float:
        """Latest diffusion time."""
        return self.levels.t_max

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return _denoising(self.levels, self.augment, model, batch)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "denoiser", "levels": self.levels.to_dict(), "augment": asdict(self.augment)}


@final
@dataclass(frozen=True)
class EdmDenoiserLoss:
    """Clean-image prediction at log-normal noise levels (Karras et al. 2022), weighted as there.

    The network is ``D(x [B, C, H, W], sigma [B]) -> x0`` with its preconditioning inside, or predicts the noise
    (`EdmLevels`).
    """

    levels: EdmLevels = EdmLevels()  # noqa: RUF009 (a frozen value)
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)

    @property
    def t_max(self) -> float:
        """Time at which the VP schedule reaches the largest level; 1 without a bound."""
        return 1.0 if self.levels.sigma_max is None else VP().time_of(-math.log(self.levels.sigma_max))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return _denoising(self.levels, self.augment, model, batch)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "denoiser", "levels": self.levels.to_dict(), "augment": asdict(self.augment)}


def _denoising(levels: DiscreteTimes | EdmLevels, augment: Augment, model: nn.Module, batch: Batch) -> Tensor:
    x0 = 2 * augment(batch.images, batch.random) - 1
    level = levels.draw(batch.random)
    noise = batch.random.normal(Purpose.NOISE, (x0.shape[1], x0.shape[2], x0.shape[3]))
    return levels.loss(model(level.noisy(x0, noise), level.labels), x0, noise, level)
