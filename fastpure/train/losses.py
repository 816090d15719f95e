"""Losses as values: frozen dataclasses that map a network and a batch to one number per image.

A new loss is one dataclass here with the same ``__call__``; the loop knows nothing else of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import mistake, whole
from ..schedule import VP
from .batches import Batch, Purpose, StepRandom

__all__ = ["Augment", "ClassifierLoss", "DenoiserLoss", "Loss", "diffuse"]


class Loss(Protocol):
    """What the loop asks of a loss."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of every image, float32 ``[B]``; the loop takes the mean."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The loss's configuration, as plain values: part of what a continued run must match."""
        ...


@final
@dataclass(frozen=True)
class Augment:
    """Random changes that keep the label.

    Fields:
        shift: each image moves by up to that many pixels in both directions; what comes in is black.
        flip: each image is mirrored left to right with probability 1/2.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        whole("shift", self.shift, 0)

    def __call__(self, images: Tensor, random: StepRandom) -> Tensor:
        """Images ``[B, C, H, W]`` -> changed copies; nothing else of the input is touched."""
        if self.shift:
            images = _shifted(images, random.integers(Purpose.SHIFT, 0, 2 * self.shift, 2), self.shift)
        if self.flip:
            mirrored = random.integers(Purpose.FLIP, 0, 1).bool().view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(3), images)
        return images


def _shifted(images: Tensor, offsets: Tensor, margin: int) -> Tensor:
    """Windows of the padded images that start at ``offsets`` (int64 ``[B, 2]``, 0..2 margin)."""
    count, _, height, width = images.shape
    padded = F.pad(images, (margin,) * 4).permute(0, 2, 3, 1)
    item = torch.arange(count, device=images.device).view(-1, 1, 1)
    row = offsets[:, 0].view(-1, 1, 1) + torch.arange(height, device=images.device).view(1, -1, 1)
    column = offsets[:, 1].view(-1, 1, 1) + torch.arange(width, device=images.device).view(1, 1, -1)
    return padded[item, row, column].permute(0, 3, 1, 2).contiguous()


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
    augment: Augment = Augment()
    schedule: VP = VP()  # noqa: RUF009 (a frozen value)

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(
                mistake("t_max", f"above t_min = {self.t_min} and at most 1 (0 < t_min)", self.t_max)
            )

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
class ClassifierLoss:
    """Cross-entropy of the logits, with ``smoothing`` of the target towards the uniform distribution."""

    augment: Augment = Augment()
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(mistake("smoothing", "a number in [0, 1)", self.smoothing))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(self.augment(batch.images, batch.random))
        return F.cross_entropy(logits.float(), batch.labels, reduction="none", label_smoothing=self.smoothing)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "classifier", **asdict(self)}
