"""Pulls towards the purifier's input: GDMP's (Wang et al. 2022, MSE and SSIM) and the Langevin attraction."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import one_of, positive, whole
from .base import GRADS, VJP, Guidance, GuidanceStep, Objective

GUIDES = ("noised", "clean")
"""The input diffused to the state's noise level with fresh noise at every step, or the input itself."""


def reference(guide: str, x0: Tensor, step: GuidanceStep) -> Tensor:
    """What the state is compared with at this step, [B, C, H, W], differentiable in ``x0``."""
    return x0 if guide == "clean" else step.alpha * x0 + step.sigma * step.noise()


class _ReadsInput(Guidance):
    """A guidance whose context is the purifier's input and which has no networks."""

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """The input itself, [B, C, H, W] in [-1, 1]."""
        return (x0,)

    def networks(self) -> tuple[nn.Module, ...]:
        """None."""
        return ()

    def cast(self, dtype: torch.dtype) -> Guidance:
        """Itself: it computes in the dtype of the state."""
        return self

    def check(self) -> None:
        """Nothing that could be in a wrong state."""


class _Pull(_ReadsInput):
    """g = weight (y - x) with y linear in the input: gradient and VJP in closed form."""

    grad: str

    @abstractmethod
    def weight(self, pixels: int) -> float:
        """Its strength for images of ``pixels`` values."""

    @abstractmethod
    def slope(self, step: GuidanceStep) -> float:
        """dy / dx0."""

    @abstractmethod
    def target(self, x0: Tensor, step: GuidanceStep) -> Tensor:
        """y at this step."""

    def gradient(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """See ``Guidance.gradient``."""
        return self.weight(x[0].numel()) * (self.target(context[0], step) - x)

    def linearize(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> tuple[Tensor, VJP]:
        """See ``Guidance.linearize``: -weight by the state, weight dy / dx0 by the input."""
        weight, slope = self.weight(x[0].numel()), self.slope(step)

        def vjp(v: Tensor) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
            if self.grad == "detached":
                return None, (None,)
            return -weight * v, ((weight * slope) * v if self.grad == "exact" else None,)

        return self.gradient(x, context, step), vjp


@dataclass(frozen=True)
class SquaredError(_Pull):
    """g(x) = -gradient of mean (x - y)^2 / ``reference_batch``, y the diffused input (GDMP's MSE mode).

    The published code takes the mean over the whole batch, which makes the pull depend on how images are
    batched. Here the mean is over each image and ``reference_batch`` (the batch size it was calibrated with) is a
    constant divisor.
    """

    reference_batch: int = 100
    guide: str = "noised"
    grad: str = "exact"

    def __post_init__(self) -> None:
        whole("reference_batch", self.reference_batch, 1)
        one_of("guide", self.guide, GUIDES)
        one_of("guidance_grad", self.grad, GRADS)

    def weight(self, pixels: int) -> float:
        """2 / (reference_batch C H W)."""
        return 2.0 / (self.reference_batch * pixels)

    def slope(self, step: GuidanceStep) -> float:
        """alpha for the diffused input, 1 for the input itself."""
        return step.alpha if self.guide == "noised" else 1.0

    def target(self, x0: Tensor, step: GuidanceStep) -> Tensor:
        """See ``reference``."""
        return reference(self.guide, x0, step)


@dataclass(frozen=True)
class Attraction(_Pull):
    """g(x) = (x0 - x) / ``variance``: the score of the input given the clean image, for Gaussian differences."""

    variance: float = 1e-3
    grad: str = "exact"
    reads_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("variance", self.variance)
        one_of("guidance_grad", self.grad, GRADS)

    def weight(self, pixels: int) -> float:
        """1 / variance, whatever the image size."""
        return 1.0 / self.variance

    def slope(self, step: GuidanceStep) -> float:
        """1."""
        return 1.0

    def target(self, x0: Tensor, step: GuidanceStep) -> Tensor:
        """The input."""
        return x0


@dataclass(frozen=True)
class StructuralSimilarity(Objective, _ReadsInput):
    """g(x) = gradient of SSIM(x, y) / ``reference_batch``, y the diffused input (GDMP's SSIM mode).

    SSIM of Wang et al. 2004: Gaussian window of side ``window`` (odd) and standard deviation ``std`` with zero
    padding, K1 = 0.01, K2 = 0.03, mean over pixels and channels. Its constants are (K ``data_range``)^2: 0.01^2 and
    0.03^2 as in GDMP's code, which compares images in [-1, 1] all the same, whose range is 2.
    """

    reference_batch: int = 100
    guide: str = "noised"
    window: int = 11
    std: float = 1.5
    data_range: float = 1.0
    grad: str = "exact"

    def __post_init__(self) -> None:
        whole("reference_batch", self.reference_batch, 1)
        one_of("guide", self.guide, GUIDES)
        one_of("window", whole("window", self.window, 1) % 2, (1,))
        positive("std", self.std)
        positive("data_range", self.data_range)
        one_of("guidance_grad", self.grad, GRADS)

    def objective(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """The sum over the batch of each image's SSIM, divided by ``reference_batch``."""
        y = reference(self.guide, context[0], step)
        return self.ssim(x, y).sum() / self.reference_batch

    def ssim(self, x: Tensor, y: Tensor) -> Tensor:
        """SSIM of each pair of images [B, C, H, W]; [B]."""
        mean_x, mean_y = self._blur(x), self._blur(y)
        var_x = self._blur(x * x) - mean_x * mean_x
        var_y = self._blur(y * y) - mean_y * mean_y
        covariance = self._blur(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * self.data_range) ** 2, (0.03 * self.data_range) ** 2
        top = (2.0 * mean_x * mean_y + c1) * (2.0 * covariance + c2)
        bottom = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
        return (top / bottom).flatten(1).mean(1)

    def _blur(self, x: Tensor) -> Tensor:
        # Separable: two passes with 11 taps instead of 121.
        offsets = torch.arange(self.window, dtype=x.dtype, device=x.device) - (self.window - 1) / 2
        taps = torch.exp(-offsets.square() / (2.0 * self.std**2))
        taps = (taps / taps.sum()).expand(x.shape[1], 1, -1)
        groups, half = x.shape[1], self.window // 2
        x = F.conv2d(x, taps[:, :, :, None], padding=(half, 0), groups=groups)
        return F.conv2d(x, taps[:, :, None, :], padding=(0, half), groups=groups)
