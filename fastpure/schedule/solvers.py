"""Solvers of the reverse diffusion as tables. Each function returns a ``StepTable`` and does nothing else.

All of them are affine in (state, predicted noise, fresh noise), which is why tables suffice. Test vectors and
convergence orders are in ``tests/schedule``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ..errors import mistake, one_of, positive, whole
from .table import Row, StepTable
from .vp import VP, DiscreteVP, IndexedSchedule

T_EPS = 1e-5
"""Time at which continuous solvers stop (Nie et al. 2022)."""


MOST_STEPS = 100_000
"""A table of more rows is a mistake, and takes for ever."""


def check_time(t: float, argument: str = "t") -> float:
    """Return ``t`` if it is a diffusion time in (0, 1]; otherwise raise TypeError or ValueError."""
    if positive(argument, t) > 1:
        raise ValueError(
            mistake(argument, "a diffusion time in (0, 1]", repr(t), "100 steps of 1000 are t = 0.1")
        )
    return float(t)


def euler_grid(t: float, dt: float, t_eps: float = T_EPS) -> np.ndarray:
    """Times t, t - dt, ... and at last t_eps, whatever length that leaves the last step, float64 [N + 1].

    Multiples of dt are subtracted, never accumulated, and rounded to 12 decimals: a grid whose rounding error
    grows moves integer labels by one (floor(1000 t)), which is a different function.
    """
    if positive("dt", dt) > check_time(t):
        raise ValueError(mistake("dt", f"at most t = {t}", dt))
    if t <= t_eps:
        raise ValueError(mistake("t", f"above the final time {t_eps}", t))
    if (t - t_eps) / dt > MOST_STEPS:
        raise ValueError(mistake("dt", f"at least t / {MOST_STEPS}, which is that many steps", dt))
    n = math.ceil((t - t_eps) / dt - 1e-9)
    return np.array([round(t - k * dt, 12) for k in range(n)] + [t_eps], dtype=np.float64)


def forward_diffusion(alpha_bar: float) -> StepTable:
    """One row that diffuses the state to signal power ``alpha_bar``: sqrt(abar) x + sqrt(1 - abar) z."""
    if not 0 < alpha_bar < 1:
        raise ValueError(mistake("alpha_bar", "between 0 and 1", alpha_bar))
    return StepTable((Row(a=math.sqrt(alpha_bar), d=math.sqrt(1.0 - alpha_bar), forward=True),))


def at_time(schedule: VP, t: float) -> Row:
    """The noise level and the labels of continuous time ``t``; the coefficients are for the caller to set."""
    # floor(1000 t) is meant on the exact grid; the nudge keeps 0.035 * 1000 = 34.99... at 35.
    return Row(
        a=1.0,
        alpha=schedule.alpha(t),
        sigma=schedule.sigma(t),
        t=t,
        tau=999.0 * t,
        index=math.floor(1000.0 * t + 1e-6),
    )


def reverse_sde(t: float, dt: float, schedule: VP | None = None) -> StepTable:
    """Euler-Maruyama on the reverse VP-SDE from t to 1e-5, noise on every step including the last.

    x' = x + h (beta x / 2 + beta score) + sqrt(beta h) z with beta at the start of the step (Nie et al. 2022,
    eq. 4-6). Strong and weak order 1 (the noise is additive).
    """
    schedule = schedule or VP()
    grid = euler_grid(t, dt)
    rows = []
    for now, later in pairwise(grid.tolist()):
        step = schedule.beta(now) * (now - later)
        coefficients = {"a": 1.0 + 0.5 * step, "b": -step / schedule.sigma(now), "d": math.sqrt(step)}
        rows.append(replace(at_time(schedule, now), **coefficients))
    return StepTable(tuple(rows))


def exponential_sde(t: float, dt: float, schedule: VP | None = None) -> StepTable:
    """Exponential integrator of the reverse VP-SDE from t to 1e-5: linear part and noise exact, score frozen per step.

    The posterior step of DDPM in continuous time, which is SDE-DPM-Solver++ of first order (Lu et al. 2022b).
    Order 1 as Euler-Maruyama, to the same law; but a step of any length ends on its noise level, where Euler's last
    step leaves noise of variance beta dt in the image.
    """
    schedule = schedule or VP()
    rows = []
    for now, later in pairwise(euler_grid(t, dt).tolist()):
        a, b, d = eta_coefficients(schedule.alpha_bar(now), schedule.alpha_bar(later), 1.0)
        rows.append(replace(at_time(schedule, now), a=a, b=b, d=d))
    return StepTable(tuple(rows))


def probability_flow(t: float, dt: float, schedule: VP | None = None) -> StepTable:
    """Euler on the probability-flow ODE x' = x + h (beta x / 2 + beta score / 2); order 1, no noise."""
    schedule = schedule or VP()
    grid = euler_grid(t, dt)
    rows = []
    for now, later in pairwise(grid.tolist()):
        half = 0.5 * schedule.beta(now) * (now - later)
        rows.append(replace(at_time(schedule, now), a=1.0 + half, b=-half / schedule.sigma(now)))
    return StepTable(tuple(rows))


def ancestral(
    indices: Sequence[int],
    variance: str = "small",
    clip_x0: bool = True,
    schedule: IndexedSchedule | None = None,
) -> StepTable:
    """DDPM ancestral sampling (Ho et al. 2020) over descending zero-based ``indices``, ending at the image.

    ``variance``: "small" is the posterior variance, "large" is beta; both for unit strides and, with
    beta_{i|j} = 1 - abar_i / abar_j, for respaced ones. The last step adds no noise.
    """
    one_of("variance", variance, ("small", "large"))
    schedule = schedule or DiscreteVP()
    table = strided(indices, eta=1.0, clip_x0=clip_x0, schedule=schedule)
    if variance == "small":
        return table
    rows = []
    for row, after in zip(table.rows, [*indices[1:], -1], strict=True):
        beta = 1.0 - schedule.alpha_bar(row.index) / schedule.alpha_bar(after)
        rows.append(replace(row, d=math.sqrt(beta) if after >= 0 else 0.0))
    return StepTable(tuple(rows))


def strided(
    indices: Sequence[int], eta: float = 0.0, clip_x0: bool = True, schedule: IndexedSchedule | None = None
) -> StepTable:
    """The eta-family of Song et al. 2021 (DDIM, eq. 12): eta 0 is DDIM, eta 1 is DDPM with small variance.

    ``indices`` are descending zero-based steps of the discrete chain; the step after the last reaches the image.
    """
    schedule = schedule or DiscreteVP()
    steps = check_indices(indices, schedule.n)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(mistake("eta", "in [0, 1]", eta))
    nodes = [schedule.alpha_bar(i) for i in steps] + [1.0]
    rows = []
    for k, i in enumerate(steps):
        a, b, d = eta_coefficients(nodes[k], nodes[k + 1], eta)
        rows.append(
            Row(
                a=a,
                b=b,
                d=d,
                alpha=math.sqrt(nodes[k]),
                sigma=math.sqrt(1.0 - nodes[k]),
                t=(i + 1) / schedule.n,
                tau=schedule.label(i),
                index=i,
                clip=clip_x0,
            )
        )
    return StepTable(tuple(rows))


def guidance_variances(
    indices: Sequence[int], variance: str = "large", schedule: IndexedSchedule | None = None
) -> list[float]:
    """The variance that weighs the guidance at each of ``indices``, in units of the state.

    beta for "large", the posterior variance for "small". The last step has none of its own; it takes the
    posterior variance of the step before it (guided-diffusion's convention, which GDMP inherits).
    """
    one_of("variance", variance, ("small", "large"))
    schedule = schedule or DiscreteVP()
    steps = check_indices(indices, schedule.n)

    def posterior(i: int, j: int) -> float:
        now, after = schedule.alpha_bar(i), schedule.alpha_bar(j)
        return (1.0 - now / after) * (1.0 - after) / (1.0 - now)

    before_last = steps[-2] if len(steps) > 1 else min(steps[-1] + 1, schedule.n - 1)
    values = []
    for i, j in pairwise(steps):
        beta = 1.0 - schedule.alpha_bar(i) / schedule.alpha_bar(j)
        values.append(beta if variance == "large" else posterior(i, j))
    return [*values, posterior(before_last, steps[-1])]


def variance_range(
    indices: Sequence[int], schedule: IndexedSchedule | None = None
) -> list[tuple[float, float]]:
    """(least, largest) variance at each of ``indices``: between them lies a learned one (Nichol and Dhariwal 2021).

    The posterior variance, for the last step that of the step before it, and beta; see ``guidance_variances``.
    """
    schedule = schedule or DiscreteVP()
    least = guidance_variances(indices, "small", schedule)
    steps = [*check_indices(indices, schedule.n), -1]
    largest = [1.0 - schedule.alpha_bar(i) / schedule.alpha_bar(j) for i, j in pairwise(steps)]
    return list(zip(least, largest, strict=True))


def eta_coefficients(now: float, after: float, eta: float) -> tuple[float, float, float]:
    """(a, b, d) of one eta-family step between signal powers ``now`` < ``after`` (<= 1)."""
    d = eta * math.sqrt((1.0 - now / after) * (1.0 - after) / (1.0 - now))
    a = math.sqrt(after / now)
    b = math.sqrt(max(1.0 - after - d * d, 0.0)) - a * math.sqrt(1.0 - now)
    return a, b, d


def check_indices(indices: Sequence[int], n: int) -> list[int]:
    """Return ``indices`` as a list if they descend strictly within 0..n-1; otherwise raise ValueError."""
    steps = [whole("indices", i, maximum=n - 1) for i in indices]
    if not steps or any(later >= now for now, later in pairwise(steps)):
        raise ValueError(mistake("indices", f"strictly descending steps in 0..{n - 1}", steps))
    return steps


def dpm_solver_pp(
    t: float, n_steps: int, stochastic: bool = False, clip_x0: bool = False, schedule: VP | None = None
) -> StepTable:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2) from t to 1e-5, and its SDE form with ``stochastic``.

    Steps are uniform in log(alpha / sigma). The register keeps the previous prediction of the clean image. Order
    2 for the ODE; for the SDE order 2 in the mean, while its noise is integrated exactly.
    """
    schedule = schedule or VP()
    check_time(t)
    whole("n_steps", n_steps, minimum=1)
    nodes = np.linspace(schedule.log_snr_half(t), schedule.log_snr_half(T_EPS), n_steps + 1)
    times = [t, *(schedule.time_of(float(node)) for node in nodes[1:-1]), T_EPS]
    rows = []
    for k in range(n_steps):
        now, later = times[k], times[k + 1]
        h = float(nodes[k + 1] - nodes[k])
        decay = math.exp(-h) if stochastic else 1.0
        shrink = schedule.sigma(later) / schedule.sigma(now) * decay
        gain = -schedule.alpha(later) * math.expm1(-2.0 * h if stochastic else -h)
        # On a uniform grid the two-step correction is (m_k - m_{k-1}) / 2; the first step has no predecessor.
        slope = 0.5 if k else 0.0
        alpha, sigma = schedule.alpha(now), schedule.sigma(now)
        last = k + 1 == n_steps
        rows.append(
            replace(
                at_time(schedule, now),
                a=shrink + gain * (1.0 + slope) / alpha,
                b=-gain * (1.0 + slope) * sigma / alpha,
                d=schedule.sigma(later) * math.sqrt(-math.expm1(-2.0 * h)) if stochastic else 0.0,
                p=-gain * slope,
                q=0.0 if last else 1.0 / alpha,
                r=0.0 if last else -sigma / alpha,
                clip=clip_x0,
            )
        )
    return StepTable(tuple(rows))


def dpm_solver_strided(
    indices: Sequence[int], clip_x0: bool = False, schedule: IndexedSchedule | None = None
) -> StepTable:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2) over descending zero-based ``indices``, ending at the image.

    Steps of any length in log(alpha / sigma). The first and the last are of first order, the last because it has no
    end there: it returns the predicted clean image, as DDIM's does. One index alone is ``strided`` with eta 0.
    """
    schedule = schedule or DiscreteVP()
    table = strided(indices, 0.0, clip_x0, schedule)
    levels = [math.log(row.alpha / row.sigma) for row in table.rows]
    rows = []
    for k, row in enumerate(table.rows):
        last = k + 1 == len(levels)
        if k and not last:
            after = table.rows[k + 1]
            gain = -after.alpha * math.expm1(levels[k] - levels[k + 1])
            slope = 0.5 * gain * (levels[k + 1] - levels[k]) / (levels[k] - levels[k - 1])
            a, b = row.a + slope / row.alpha, row.b - slope * row.sigma / row.alpha
            row = replace(row, a=a, b=b, p=-slope)
        # The register keeps the prediction of the clean image for the step after.
        rows.append(row if last else replace(row, q=1.0 / row.alpha, r=-row.sigma / row.alpha))
    return StepTable(tuple(rows))


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
    strength: float = 0.1,
    n_steps: int = 1000,
    snr: float = 0.16,
    schedule: VP | None = None,
    corrector: bool = True,
) -> StepTable:
    """Diffusion of the input, then pairs of rows: Langevin corrector, reverse-SDE predictor (Song et al. 2021).

    A corrector's step is 2 alpha (snr |z| / |score|)^2, which depends on the state. Its row holds the step for
    |e| = |z|; the procedure that walks the table multiplies b by (|z| / |e|)^2 and d by |z| / |e|. alpha is 1 -
    beta at index floor(999 t). The last predictor adds no noise. Without ``corrector`` the predictors' rows are left,
    which no procedure need walk.
    """
    schedule = schedule or VP()
    positive("snr", snr)
    times = trailing_times(strength, n_steps).tolist()
    betas = DiscreteVP().betas
    rows = [Row(a=schedule.alpha(times[0]), d=schedule.sigma(times[0]), forward=True)]
    for t in times:
        here = at_time(schedule, t)
        if corrector:
            langevin_step = 2.0 * (1.0 - float(betas[math.floor(999.0 * t)])) * (snr * here.sigma) ** 2
            rows.append(replace(here, b=-langevin_step / here.sigma, d=math.sqrt(2.0 * langevin_step)))
        step = schedule.beta(t) / n_steps
        noise = 0.0 if t == times[-1] else math.sqrt(step)
        rows.append(replace(here, a=1.0 + 0.5 * step, b=-step / here.sigma, d=noise))
    return StepTable(tuple(rows))
