"""Noise levels a denoiser is trained at: how they are drawn, and what the network's answer means there.

A noisy image is ``alpha x0 + sigma noise``, x0 in [-1, 1]. Three families: the continuous VP schedule, its
discrete chain, and Karras et al.'s log-normal levels for networks that predict the clean image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from ...errors import mistake, one_of, positive
from ...schedule import VP, DiscreteVP
from ...shown import Fields
from ..batches import Purpose, StepRandom


@final
@dataclass(frozen=True, eq=False, repr=False)
class Level(Fields):
    """Noise level of every image: ``alpha``, ``sigma`` float64 ``[B]``, and ``labels`` as the network wants them."""

    alpha: Tensor
    sigma: Tensor
    labels: Tensor

    def column(self, value: Tensor, like: Tensor) -> Tensor:
        """``value`` float64 ``[B]`` as ``[B, 1, 1, 1]`` in the dtype of ``like``."""
        return value.to(like.dtype).view(-1, 1, 1, 1)

    def noisy(self, x0: Tensor, noise: Tensor) -> Tensor:
        """The state ``alpha x0 + sigma noise``, ``[B, C, H, W]``."""
        return self.column(self.alpha, x0) * x0 + self.column(self.sigma, x0) * noise

    def signal_to_noise(self, unit: float, cap: float) -> Tensor:
        """``clip(unit alpha / sigma, 0, cap)``, float64 ``[B]``: an image-space size in units of the noise."""
        return (unit * self.alpha / self.sigma).clamp(0.0, cap)


class Levels(ABC):
    """A family of noise levels, and the convention of the networks trained on it.

    Attributes:
        prediction, time_input: what a `fastpure.Denoiser` must be for this family.
    """

    prediction: str
    time_input: str

    @abstractmethod
    def draw(self, random: StepRandom) -> Level:
        """The level of every row of a training batch."""

    @abstractmethod
    def clean(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        """The clean image ``[B, C, H, W]`` that the network's ``output`` for the state ``x`` amounts to."""

    @abstractmethod
    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """Training loss ``[B]`` of ``output`` where the state is made of ``x0`` and ``noise``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values that identify the family."""


class _NoisePrediction(Levels):
    """What both VP families share: the network predicts the noise, and its loss is the mean squared error."""

    prediction = "eps"

    def clean(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        return (x - level.column(level.sigma, x) * output) / level.column(level.alpha, x)

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        return (output.float() - noise).square().flatten(1).mean(1)


@final
@dataclass(frozen=True)
class ContinuousTimes(_NoisePrediction):
    """t ~ U[t_min, t_max] on the continuous VP schedule (Song et al. 2021), label 999 t."""

    t_min: float = 1e-3
    t_max: float = 1.0
    schedule: VP = VP()  # noqa: RUF009 (a frozen value)
    time_input = "continuous"

    def __post_init__(self) -> None:
        check_times(self.t_min, self.t_max)

    def draw(self, random: StepRandom) -> Level:
        return self.at(self.t_min + (self.t_max - self.t_min) * random.uniform(Purpose.TIME)[:, 0])

    def at(self, times: Tensor) -> Level:
        """The levels of given times, float64 ``[B]``; double precision, since sigma(1e-5) is only 1e-3."""
        slope = self.schedule.beta_max - self.schedule.beta_min
        integral = times * (self.schedule.beta_min + 0.5 * slope * times)
        sigma = torch.sqrt(-torch.expm1(-integral))
        return Level(torch.exp(-0.5 * integral), sigma, (999 * times).float())

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "vp", **asdict(self)}


@final
@dataclass(frozen=True)
class DiscreteTimes(_NoisePrediction):
    """Zero-based index i ~ U{0, ..., n t_max - 1} of the discrete VP chain (Ho et al. 2020), label i (int64)."""

    t_max: float = 1.0
    schedule: DiscreteVP = DiscreteVP()  # noqa: RUF009 (a frozen value)
    time_input = "index"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.schedule.n:
            expected = f"at least one of {self.schedule.n} steps and at most 1"
            raise ValueError(mistake("t_max", expected, self.t_max))

    @property
    def count(self) -> int:
        """How many indices are drawn from."""
        return math.floor(self.t_max * self.schedule.n + 1e-6)

    def draw(self, random: StepRandom) -> Level:
        return self.at(random.integers(Purpose.TIME, 0, self.count - 1)[:, 0])

    def at(self, index: Tensor) -> Level:
        """The levels of given indices, int64 ``[B]``."""
        bars = torch.from_numpy(self.schedule.alpha_bars).to(index.device)[index]
        return Level(bars.sqrt(), (1 - bars).sqrt(), index)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "discrete", **asdict(self)}


@final
@dataclass(frozen=True)
class EdmLevels(Levels):
    """ln sigma ~ N(mean, std^2) and alpha = 1 (Karras et al. 2022, table 1), for networks that are told sigma.

    The loss is ``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (D - x0)^2``, mean over pixels, D being the
    network's clean image. With ``sigma_max`` the distribution is cut off there: purification never meets larger
    levels. ``prediction`` is "x0" for networks D(x; sigma), "eps" for those that predict (x - D) / sigma.
    """

    mean: float = -1.2
    std: float = 1.2
    sigma_data: float = 0.5
    sigma_max: float | None = None
    prediction: str = "x0"
    time_input = "sigma"

    def __post_init__(self) -> None:
        one_of("prediction", self.prediction, ("x0", "eps"))
        positive("std", self.std)
        positive("sigma_data", self.sigma_data)
        if self.sigma_max is not None:
            positive("sigma_max", self.sigma_max)
        if not math.isfinite(self.mean):
            raise ValueError(mistake("mean", "a finite number", self.mean))

    def draw(self, random: StepRandom) -> Level:
        uniform = random.uniform(Purpose.TIME)[:, 0]
        if self.sigma_max is not None:
            standard = (math.log(self.sigma_max) - self.mean) / self.std
            uniform = uniform * 0.5 * math.erfc(-standard / math.sqrt(2))
        return self.at(torch.exp(self.mean + self.std * torch.special.ndtri(uniform)))

    def at(self, sigma: Tensor) -> Level:
        """The given levels, float64 ``[B]``."""
        return Level(torch.ones_like(sigma), sigma, sigma.float())

    def clean(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        return output if self.prediction == "x0" else x - level.column(level.sigma, x) * output

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        weight = (level.sigma**2 + self.sigma_data**2) / (level.sigma * self.sigma_data) ** 2
        if self.prediction == "eps":  # D - x0 = sigma (noise - output), without the cancellation
            weight, x0 = weight * level.sigma**2, noise
        return weight.to(x0.dtype) * (output.float() - x0).square().flatten(1).mean(1)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "edm", **asdict(self)}


def check_times(t_min: float, t_max: float) -> None:
    """Raise ValueError unless ``0 < t_min < t_max <= 1``."""
    if not 0 < t_min < t_max <= 1:
        raise ValueError(mistake("t_max", f"above t_min = {t_min} and at most 1 (0 < t_min)", t_max))


def diffuse(x0: Tensor, times: Tensor, noise: Tensor, schedule: VP) -> Tensor:
    """The state ``alpha(t) x0 + sigma(t) noise``.

    Args:
        x0, noise: ``[B, C, H, W]``, images in [-1, 1].
        times: float64 ``[B]``. The coefficients are computed in double precision, because
            sigma(1e-5) = 1e-3 would lose half its digits in single precision.
    """
    listed = times.tolist()
    alpha = torch.tensor([schedule.alpha(t) for t in listed], dtype=x0.dtype, device=x0.device)
    sigma = torch.tensor([schedule.sigma(t) for t in listed], dtype=x0.dtype, device=x0.device)
    return alpha.view(-1, 1, 1, 1) * x0 + sigma.view(-1, 1, 1, 1) * noise
