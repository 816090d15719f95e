"""Bounds that turn votes and scores under noise into statements that hold with a known probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import mistake, positive, whole

MOST_SIGMA = 5.0
"""Deviation of noise, in [0, 1] units, under which nothing of an image is left: above it were meant grey levels."""


def check_sigma(sigma: float) -> float:
    """Return ``sigma`` as float if it is a deviation of noise in [0, 1] units."""
    if positive("sigma", sigma) > MOST_SIGMA:
        remedy = f"Images are in [0, 1]: write {sigma:g}/255 for {sigma:g} grey levels"
        raise ValueError(mistake("sigma", f"at most {MOST_SIGMA:g}", sigma, remedy))
    return float(sigma)


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
    check_radius(radius)
    pairs = zip(correct, radii, strict=True)
    return sum(right and certified > 0 and certified >= radius for right, certified in pairs)


def percentile_ranks(n: int, level: float, alpha: float) -> tuple[int, int]:
    """Places (low, high), counted from 1, of a percentile's bounds among ``n`` sorted independent draws.

    With probability at least 1 - alpha the draw at ``low`` is at most the ``level``-quantile inf {s: P(score <= s) >=
    level}, and with that probability the one at ``high`` is at least it. ``low`` is 0 and ``high`` is n + 1 where so
    few draws bound nothing.

    Args:
        level: in [0, 1].
        alpha: error probability in (0, 1).
    """
    from scipy.stats import binom

    whole("n", n, 1)
    check_alpha(alpha)
    if not 0 <= level <= 1:
        raise ValueError(mistake("level", "in [0, 1]", level))
    if level in (0.0, 1.0):
        return (0, 1) if level == 0 else (n, n + 1)
    # The draws at most (less than) the quantile are at least (most) binomial with this probability.
    return int(binom.ppf(alpha, n, level)), int(binom.ppf(1.0 - alpha, n, level)) + 1


def shifted_level(level: float, shift: float) -> float:
    """``Phi(Phi^-1(level) + shift)``: a quantile's level seen from ``shift`` deviations of the noise away."""
    from scipy.special import ndtr, ndtri

    return float(ndtr(ndtri(level) + shift))


def check_radius(radius: float) -> float:
    """Return ``radius`` if it is a finite number >= 0."""
    if not (radius >= 0 and math.isfinite(radius)):
        raise ValueError(mistake("radius", "a finite number >= 0", radius))
    return float(radius)
