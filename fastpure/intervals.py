"""Confidence intervals for accuracies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from .errors import mistake


@dataclass(frozen=True)
class Interval:
    """An estimated proportion with its confidence interval; all three in [0, 1]."""

    estimate: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{100 * self.estimate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval for ``successes`` out of ``n`` (Wilson 1927).

    ``successes`` may be fractional: the accuracy of a randomised defence is a mean over draws, but its unit of
    replication is the image, so the sum of the images' mean accuracies goes in and n counts images. For 0 or n
    of n the interval has the right length where the normal approximation has none.
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(mistake("successes", f"in [0, n = {n}]", successes))
    if not 0 < confidence < 1:
        raise ValueError(mistake("confidence", "between 0 and 1", confidence))
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0, 0, confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not push the bound past the estimate at 0 and 1, where they coincide.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n, confidence)
