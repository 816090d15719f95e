"""From counts of votes to a certified radius (Cohen, Rosenfeld and Kolter 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import mistake, positive, whole

__all__ = ["certified_radius", "check_alpha", "lower_bound", "rate_at"]


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
