"""Losses that train a denoiser from nothing: continuous VP, discrete VP, EDM."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ...errors import mistake
from ...nets import Denoiser
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

    A class-conditional denoiser is told the label of each image, and with probability ``label_dropout`` no class.

    Raises:
        ValueError: not ``0 < t_min < t_max <= 1``, or not ``0 <= label_dropout < 1``.
    """

    t_max: float = 1.0
    t_min: float = 1e-5
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)
    schedule: VP = VP()  # noqa: RUF009 (a frozen value)
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_times(self.t_min, self.t_max)
        check_label_dropout(self.label_dropout)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x0 = 2 * self.augment(batch.images, batch.random) - 1
        times = self.t_min + (self.t_max - self.t_min) * batch.random.uniform(Purpose.TIME)[:, 0]
        noise = batch.random.normal(Purpose.NOISE, (x0.shape[1], x0.shape[2], x0.shape[3]))
        labels = (999 * times).to(x0.device, x0.dtype)
        told = told_classes(model, batch, self.label_dropout)
        predicted = model(diffuse(x0, times, noise, self.schedule), labels, *told)
        return (predicted.float() - noise).square().flatten(1).mean(1)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        dropout = values.pop("label_dropout")
        return {"kind": "denoiser", **values, **dropout_dict(dropout)}


@final
@dataclass(frozen=True)
class DiscreteDenoiserLoss:
    """Noise prediction for the discrete VP chain (Ho et al. 2020), optionally up to ``t_max`` only.

    As `DenoiserLoss`, with a zero-based index instead of a time, which is also the network's label.
    """

    levels: DiscreteTimes = DiscreteTimes()  # noqa: RUF009 (a frozen value)
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_label_dropout(self.label_dropout)

    @property
    def t_max(self) -> float:
        """Latest diffusion time."""
        return self.levels.t_max

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return _denoising(self.levels, self.augment, self.label_dropout, model, batch)

    def to_dict(self) -> dict[str, Any]:
        values = {"kind": "denoiser", "levels": self.levels.to_dict(), "augment": asdict(self.augment)}
        return {**values, **dropout_dict(self.label_dropout)}


@final
@dataclass(frozen=True)
class EdmDenoiserLoss:
    """Clean-image prediction at log-normal noise levels (Karras et al. 2022), weighted as there.

    The network is ``D(x [B, C, H, W], sigma [B]) -> x0`` with its preconditioning inside, or predicts the noise
    (`EdmLevels`).
    """

    levels: EdmLevels = EdmLevels()  # noqa: RUF009 (a frozen value)
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_label_dropout(self.label_dropout)

    @property
    def t_max(self) -> float:
        """Time at which the VP schedule reaches the largest level; 1 without a bound."""
        return 1.0 if self.levels.sigma_max is None else VP().time_of(-math.log(self.levels.sigma_max))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return _denoising(self.levels, self.augment, self.label_dropout, model, batch)

    def to_dict(self) -> dict[str, Any]:
        values = {"kind": "denoiser", "levels": self.levels.to_dict(), "augment": asdict(self.augment)}
        return {**values, **dropout_dict(self.label_dropout)}


def told_classes(model: nn.Module, batch: Batch, label_dropout: float) -> tuple[Tensor, ...]:
    """The labels, -1 for those left out, as the last argument of a class-conditional `Denoiser`; else nothing."""
    if not isinstance(model, Denoiser) or not model.n_classes:
        return ()
    if not label_dropout:
        return (batch.labels,)
    left_out = batch.random.uniform(Purpose.LABEL_DROPOUT)[:, 0] < label_dropout
    return (torch.where(left_out, -1, batch.labels),)


def check_label_dropout(label_dropout: float) -> None:
    """Raise ValueError unless it is a share in [0, 1)."""
    if not 0 <= label_dropout < 1:
        raise ValueError(mistake("label_dropout", "a share in [0, 1)", label_dropout))


def dropout_dict(label_dropout: float) -> dict[str, float]:
    # Runs that are older than this setting hold none.
    return {"label_dropout": label_dropout} if label_dropout else {}


def _denoising(
    levels: DiscreteTimes | EdmLevels,
    augment: Augment,
    label_dropout: float,
    model: nn.Module,
    batch: Batch,
) -> Tensor:
    x0 = 2 * augment(batch.images, batch.random) - 1
    level = levels.draw(batch.random)
    noise = batch.random.normal(Purpose.NOISE, (x0.shape[1], x0.shape[2], x0.shape[3]))
    told = told_classes(model, batch, label_dropout)
    return levels.loss(model(level.noisy(x0, noise), level.labels, *told), x0, noise, level)
