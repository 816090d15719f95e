"""Denoised smoothing's base classifier (Carlini et al. 2022): one denoising step, then a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..classifiers import call_frozen, require_eval
from ..errors import mistake, positive, whole
from ..nets import Conditioning, Denoiser
from ..schedule import VP, DiscreteVP


class OneShotClassifier(nn.Module):
    """Logits of images in [0, 1] that carry Gaussian noise of known deviation ``sigma``.

    The noisy image u + sigma n is scaled to the diffusion state alpha (2 (u + sigma n) - 1), whose noise level
    is sigma_t / alpha = 2 sigma; the predicted clean image, clamped to [0, 1], goes to the classifier. Whatever
    this function does, smoothing it certifies the result.

    Args:
        denoiser: any convention. One with integer time is told the first index at least as noisy as the image.
        classifier: images in [0, 1] to logits, evaluation mode.
        sigma: deviation of the noise in [0, 1] units.

    Raises:
        TypeError, ValueError: networks of the wrong kind, or a ``sigma`` beyond the schedule's last level.
    """

    def __init__(self, denoiser: Denoiser, classifier: nn.Module, sigma: float) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise TypeError(mistake("denoiser", "a fastpure.Denoiser", type(denoiser).__name__))
        if (schedule := getattr(denoiser, "schedule", "linear")) not in ("linear", "flow"):
            raise ValueError(mistake("denoiser", "one of the linear schedule", f"one of the {schedule} one"))
        self.sigma = positive("sigma", sigma)
        self.denoiser = denoiser.frozen()
        self.classifier = require_eval(classifier, "classifier")
        ratio = 2 * self.sigma
        self.t, self.index = _time_of(ratio)
        self.alpha = 1 / math.sqrt(1 + ratio * ratio)
        self._conditioning = self._condition()
        self.eval()

    def clean(self, noisy: Tensor) -> Tensor:
        """The estimate of the clean images [B, C, H, W] in [0, 1] from noisy ones in [0, 1] units."""
        x = self.alpha * (2 * noisy - 1)
        predicted = self.denoiser.noise_pred(x, self._conditioning, 0)
        x0 = x / self.alpha - 2 * self.sigma * predicted
        return ((x0 + 1) / 2).clamp(0.0, 1.0)

    def forward(self, noisy: Tensor) -> Tensor:
        """Logits [B, classes] of noisy images [B, C, H, W] in [0, 1] units."""
        return call_frozen(self.classifier, self.clean(noisy))

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # The weights may have moved: what was computed from them is remade where they are.
        super()._apply(fn, recurse)
        self._conditioning = self._condition()
        return self

    @torch.no_grad()
    def _condition(self) -> Conditioning:
        columns = (999 * self.t, self.index, self.alpha, 2 * self.sigma * self.alpha)
        return self.denoiser.conditioning(*(np.array([value]) for value in columns))


def _time_of(ratio: float) -> tuple[float, int]:
    """Continuous time and first discrete index whose noise-to-signal ratio is (at least) ``ratio``."""
    t = VP().time_of(-math.log(ratio))
    bars = DiscreteVP().alpha_bars
    enough = np.flatnonzero(np.sqrt((1 - bars) / bars) >= ratio)
    if t > 1 or not len(enough):
        most = VP().sigma(1.0) / VP().alpha(1.0) / 2
        raise ValueError(mistake("sigma", f"at most {most:.3g}, the schedule's last level", ratio / 2))
    return t, int(enough[0])


def check_alpha(alpha: float) -> float:
    """Return ``alpha`` if it is an error probability in (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(mistake("alpha", "an error probability in (0, 1)", alpha))
    return float(alpha)


def lower_bound(successes: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: with probability at least 1 - alpha it is below the true rate.

    Args:
        successes: in 0..n.
        n: independent trials, at least 1.
        alpha: error probability in (0, 1).
    """
    from scipy.stats import beta

    whole("n", n, 1)
    whole("successes", successes, 0, n)
    check_alpha(alpha)
    return 0.0 if successes == 0 else float(beta.ppf(alpha, successes, n - successes + 1))


def certified_radius(p_lower: float, sigma: float) -> float:
    """``sigma Phi^-1(p_lower)``, the L2 radius in the units of ``sigma``; 0 where ``p_lower`` is not above 1/2.

    0 stands for abstaining: more than half of the noisy images could belong to other classes.
    """
    from scipy.special import ndtri

    positive("sigma", sigma)
    return sigma * float(ndtri(p_lower)) if p_lower > 0.5 else 0.0


def rate_at(correct: Sequence[bool], radii: Sequence[float], radius: float) -> int:
    """How many images are certified at ``radius``: right, not abstained, and with at least that radius."""
    if not (radius >= 0 and math.isfinite(radius)):
        raise ValueError(mistake("radius", "a finite number >= 0", radius))
    pairs = zip(correct, radii, strict=True)
    return sum(right and certified > 0 and certified >= radius for right, certified in pairs)
