"""Langevin samplers: at one noise level, and as the corrector of a reverse SDE."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..errors import positive, whole
from .solvers import at_time, check_time
from .table import Row, StepTable
from .vp import VP, DiscreteVP


def langevin(
    t: float, dt: float, n_steps: int, rate: float, temperature: float, schedule: VP | None = None
) -> StepTable:
    """Euler-Maruyama steps of dx = (rate / 2) (score + g) ds + temperature sqrt(rate) dw at fixed time ``t``.

    g is the guidance gradient, added to the score with weight 1; ``dt`` is the step in s.
    """
    schedule = schedule or VP()
    whole("n_steps", n_steps, minimum=1)
    step = positive("rate", rate) * positive("dt", dt)
    here = at_time(schedule, check_time(t))
    row = replace(
        here,
        b=-0.5 * step / here.sigma,
        c=0.5 * step,
        d=positive("temperature", temperature) * math.sqrt(step),
    )
    return StepTable((row,) * n_steps)


def trailing_times(strength: float, n: int) -> np.ndarray:
    """The last part of the grid 1, ..., 1e-3 of ``n`` times, starting one before the fraction ``strength``.

    ADDT's rule: position round((1 - strength) n) - 1, which is time 0.101 for strength 0.1 of 1000.
    """
    start = round((1.0 - check_time(strength, "strength")) * whole("n_steps", n, minimum=2)) - 1
    return np.round(np.linspace(1.0, 1e-3, n), 12)[max(start, 0) :]


def predictor_corrector(
    strength: float = 0.1, n_steps: int = 1000, snr: float = 0.16, schedule: VP | None = None
) -> StepTable:
    """Diffusion of the input, then pairs of rows: Langevin corrector, reverse-SDE predictor (Song et al. 2021).

    A corrector's step is 2 alpha (snr |z| / |score|)^2, which depends on the state. Its row holds the step for
    |e| = |z|; the procedure that walks the table multiplies b by (|z| / |e|)^2 and d by |z| / |e|. alpha is 1 -
    beta at index floor(999 t). The last predictor adds no noise.
    """
    schedule = schedule or VP()
    positive("snr", snr)
    times = trailing_times(strength, n_steps).tolist()
    betas = DiscreteVP().betas
    rows = [Row(a=schedule.alpha(times[0]), d=schedule.sigma(times[0]), forward=True)]
    for t in times:
        here = at_time(schedule, t)
        langevin_step = 2.0 * (1.0 - float(betas[math.floor(999.0 * t)])) * (snr * here.sigma) ** 2
        rows.append(replace(here, b=-langevin_step / here.sigma, d=math.sqrt(2.0 * langevin_step)))
        step = schedule.beta(t) / n_steps
        noise = 0.0 if t == times[-1] else math.sqrt(step)
        rows.append(replace(here, a=1.0 + 0.5 * step, b=-step / here.sigma, d=noise))
    return StepTable(tuple(rows))
