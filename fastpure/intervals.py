"""Confidence intervals for accuracies, and exact tests of what varies between draws and between two defences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .errors import mistake
from .shown import Settings


@dataclass(frozen=True)
class Interval(Settings):
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


def cochran_q(correct: np.ndarray) -> tuple[float, float]:
    """Cochran's Q and its p-value: do the K columns of a binary [B, K] table have the same mean?

    Q = K (K-1) sum_j (C_j - C)^2 / sum_i R_i (K - R_i), asymptotically chi-squared with K-1 degrees of freedom;
    (0, 1) if no row is mixed.
    """
    from scipy.stats import chi2

    k = correct.shape[1]
    columns, rows = correct.sum(0, dtype=np.float64), correct.sum(1, dtype=np.float64)
    scale = float((rows * (k - rows)).sum())
    if scale == 0.0:
        return 0.0, 1.0
    q = k * (k - 1) * float(((columns - columns.mean()) ** 2).sum()) / scale
    return q, float(chi2.sf(q, k - 1))


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p-value of McNemar's test: ``wins`` and ``losses`` are the discordant pairs.

    Under the null hypothesis each is as likely: twice the smaller binomial tail, at most 1.
    """
    from scipy.stats import binomtest

    n = wins + losses
    return 1.0 if n == 0 else float(binomtest(wins, n, 0.5).pvalue)
