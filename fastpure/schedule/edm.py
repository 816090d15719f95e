"""The sampler of Karras et al. 2022 ("Elucidating the Design Space", algorithms 1 and 2) as a table.

There a state is x = x0 + sigma noise. Here it is the same state times alpha = 1 / sqrt(1 + sigma^2), so that every
denoiser can be used: one with "sigma" labels gets x and sigma back, one trained on the VP schedule finds the
state it knows and is told the time of that noise level.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from ..errors import mistake, positive, whole
from .table import Row, StepTable
from .vp import VP

CHURN_MAX = math.sqrt(2.0) - 1.0
"""Largest relative increase of the noise level in one step (Karras et al. 2022, algorithm 2)."""


def alpha_of(sigma: float) -> float:
    """Signal amplitude of the VP state whose noise level relative to the signal is ``sigma``."""
    return 1.0 / math.sqrt(1.0 + sigma * sigma)


def level(sigma: float, schedule: VP) -> dict[str, float]:
    """The fields of a Row that describe a state with noise level ``sigma`` > 0 relative to the signal."""
    t = schedule.time_of(-math.log(sigma))
    return {
        "alpha": alpha_of(sigma),
        "sigma": alpha_of(sigma) * sigma,
        "t": t,
        "tau": 999.0 * t,
        "index": math.floor(1000.0 * t + 1e-6),
    }


def karras_grid(sigma_max: float, sigma_min: float, n_steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels of ``n_steps`` steps and the final 0, float64 [n_steps + 1] (Karras et al. 2022, eq. 5)."""
    if positive("sigma_min", sigma_min) >= positive("sigma_max", sigma_max):
        raise ValueError(mistake("sigma_min", f"below sigma_max = {sigma_max}", sigma_min))
    whole("n_steps", n_steps, minimum=1)
    ramp = np.linspace(0.0, 1.0, n_steps) if n_steps > 1 else np.zeros(1)
    ends = sigma_max ** (1.0 / positive("rho", rho)), sigma_min ** (1.0 / rho)
    return np.append((ends[0] + ramp * (ends[1] - ends[0])) ** rho, 0.0)


def consistency_steps(
    sigma: float, sigma_min: float, n_steps: int, rho: float = 7.0, clip_x0: bool = True
) -> StepTable:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): the clean image D, then noise again, and so on.

    From a state with noise level ``sigma``: x0 = D(x, s_k), then x0 + sqrt(s_{k+1}^2 - sigma_min^2) z, the levels s_k
    being the first ``n_steps`` of Karras et al.'s grid down to ``sigma_min``; the last row ends at the image. States
    are scaled as everywhere in this file.
    """
    grid = karras_grid(sigma, sigma_min, n_steps + 1, rho)[:n_steps].tolist()
    rows = []
    for k, now in enumerate(grid):
        later = grid[k + 1] if k + 1 < n_steps else None
        alpha = 1.0 if later is None else alpha_of(later)
        noise = 0.0 if later is None else alpha * math.sqrt(later**2 - sigma_min**2)
        here = level(now, VP())
        rows.append(Row(a=alpha / alpha_of(now), b=-alpha * now, d=noise, clip=clip_x0, **here))  # type: ignore[arg-type]
    return StepTable(tuple(rows))


def edm(
    sigma_max: float = 0.5,
    sigma_min: float = 0.002,
    n_steps: int = 50,
    rho: float = 7.0,
    churn: float = 6.0,
    s_noise: float = 1.007,
    heun: bool = True,
    schedule: VP | None = None,
) -> StepTable:
    """From noise level ``sigma_max`` to the image; one row per noise increase, Euler step and Heun correction.

    ``churn`` >= 0 raises the noise level by min(churn / n_steps, sqrt(2) - 1) before each step, with noise of
    ``s_noise`` times the matching size; 0 is the deterministic sampler. Order 2 with ``heun``, 1 without. Heun's
    register holds the step's start plus half its first slope.
    """
    schedule = schedule or VP()
    if isinstance(churn, bool) or not 0.0 <= churn < float("inf"):
        raise ValueError(mistake("churn", "a finite number >= 0", churn))
    positive("s_noise", s_noise)
    if sigma_max > (limit := schedule.sigma(1.0) / schedule.alpha(1.0)):
        raise ValueError(mistake("sigma_max", f"at most {limit:g}, the end of the schedule", sigma_max))
    gamma = min(churn / whole("n_steps", n_steps, minimum=1), CHURN_MAX)
    rows: list[Row] = []
    for sigma, later in pairwise(karras_grid(sigma_max, sigma_min, n_steps, rho).tolist()):
        raised = sigma * (1.0 + gamma)
        if gamma > 0.0:
            spread = math.sqrt(raised**2 - sigma**2) * s_noise
            rows.append(Row(a=alpha_of(raised) / alpha_of(sigma), d=alpha_of(raised) * spread))
        alpha, step = alpha_of(later), later - raised
        euler = {"a": alpha / alpha_of(raised), "b": alpha * step}
        corrects = heun and later > 0.0
        half = {"q": euler["a"], "r": 0.5 * euler["b"]} if corrects else {}
        rows.append(Row(**euler, **half, **level(raised, schedule)))  # type: ignore[arg-type]
        if corrects:
            rows.append(Row(a=0.0, b=0.5 * alpha * step, p=1.0, **level(later, schedule)))  # type: ignore[arg-type]
    return StepTable(tuple(rows))
