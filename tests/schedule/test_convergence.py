"""On Gaussian data the score is linear, so every table is an affine map and its exact law can be compared."""

from itertools import pairwise

import numpy as np
import pytest

from fastpure.schedule import (
    VP,
    DiscreteVP,
    ancestral,
    dpm_solver_pp,
    exponential_sde,
    probability_flow,
    reverse_sde,
    strided,
)
from fastpure.schedule.solvers import eta_coefficients
from fastpure.schedule.table import Row, StepTable

MEAN, STD = 0.7, 0.5
T = 0.3


def propagate(table: StepTable, mean: float, var: float) -> tuple[float, float]:
    """Exact mean and variance after the table, for data N(MEAN, STD^2) and its exact noise predictor."""
    # Joint law of (state, register): the map is linear, so two moments suffice.
    m, cov = np.array([mean, 0.0]), np.diag([var, 0.0])
    for row in table.rows:
        marginal = row.alpha**2 * STD**2 + row.sigma**2
        gain, offset = row.sigma / marginal, -row.sigma * row.alpha * MEAN / marginal
        step = np.array([[row.a + row.b * gain, row.p], [row.q + row.r * gain, row.s]])
        m = step @ m + offset * np.array([row.b, row.r])
        cov = step @ cov @ step.T + np.diag([row.d**2, 0.0])
    return float(m[0]), float(cov[0, 0])


def moment_error(
    table: StepTable, start: tuple[float, float], end: tuple[float, float]
) -> tuple[float, float]:
    """Errors of mean and variance at the end, started from the exact law with these (alpha, sigma)."""
    # The mean of a Gaussian started at its marginal is exact for some solvers; start it one unit off.
    mean, var = propagate(table, start[0] * MEAN + 1.0, start[0] ** 2 * STD**2 + start[1] ** 2)
    variances = [alpha**2 * STD**2 + sigma**2 for alpha, sigma in (start, end)]
    return abs(mean - end[0] * MEAN), abs(var - variances[1])


def order(errors: list[float]) -> float:
    """Slope of log error against log step for steps that halve each time."""
    return float(np.polyfit(np.arange(len(errors)), -np.log2(errors), 1)[0])


def ends(vp: VP) -> tuple[tuple[float, float], tuple[float, float]]:
    return (vp.alpha(T), vp.sigma(T)), (vp.alpha(1e-5), vp.sigma(1e-5))


def test_euler_maruyama_is_weak_order_one():
    vp = VP()
    start, end = ends(vp)
    errors = []
    for n in (64, 128, 256, 512):
        _, variance = moment_error(reverse_sde(T, T / n), start, end)
        errors.append(variance)
    assert order(errors) == pytest.approx(1.0, abs=0.15)


def test_the_exponential_integrator_is_order_one_and_leaves_no_noise_in_few_steps():
    """Four steps: the variance left beyond the data's is a hundredth of what Euler-Maruyama leaves."""
    start, end = ends(VP())
    errors = [moment_error(exponential_sde(T, T / n), start, end)[1] for n in (64, 128, 256, 512)]
    assert order(errors) == pytest.approx(1.0, abs=0.2)
    few, euler = (solver(0.1, 0.025).rows for solver in (exponential_sde, reverse_sde))
    assert few[-1].d < 1.1e-3
    assert euler[-1].d > 0.12
    assert [row.tau for row in few] == [row.tau for row in euler]


def test_the_exponential_integrator_is_euler_in_the_limit():
    """Coefficients over h agree to first order, guidance included."""
    exponential, euler = (solver(0.1, 1e-5).guided(2.0).rows[0] for solver in (exponential_sde, reverse_sde))
    for name in ("a", "b", "c", "d"):
        first = 1.0 if name == "a" else 0.0
        assert getattr(exponential, name) - first == pytest.approx(getattr(euler, name) - first, rel=1e-3)


def test_probability_flow_is_order_one():
    vp = VP()
    start, end = ends(vp)
    errors = []
    for n in (64, 128, 256, 512):
        table = probability_flow(T, T / n)
        _, variance = moment_error(table, start, end)
        errors.append(variance)
    # The last step meets sigma ~ sqrt(t), which costs up to half an order in a fixed-step Euler method.
    assert 0.75 < order(errors) < 1.25


@pytest.mark.parametrize(("stochastic", "low", "high"), [(False, 1.8, 2.3), (True, 1.8, 2.3)])
def test_dpm_solver_pp_is_order_two(stochastic, low, high):
    vp = VP()
    start, end = ends(vp)
    errors = [moment_error(dpm_solver_pp(T, n, stochastic), start, end)[1] for n in (32, 64, 128, 256)]
    assert low < order(errors) < high


@pytest.mark.parametrize(("eta", "expected"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0)])
def test_eta_family_is_order_one(eta, expected):
    """In the limit of fine steps; uniform in log(alpha / sigma), where the family has bounded coefficients."""
    vp = VP()
    start, end = ends(vp)
    errors = []
    for n in (64, 128, 256, 512):
        nodes = [vp.time_of(x) for x in np.linspace(vp.log_snr_half(T), vp.log_snr_half(1e-5), n + 1)]
        rows = []
        for now, later in pairwise(nodes):
            a, b, d = eta_coefficients(vp.alpha_bar(now), vp.alpha_bar(later), eta)
            rows.append(Row(a=a, b=b, d=d, alpha=vp.alpha(now), sigma=vp.sigma(now)))
        errors.append(moment_error(StepTable(tuple(rows)), start, end)[1])
    assert order(errors) == pytest.approx(expected, abs=0.15)


def test_all_solvers_reach_the_same_law():
    vp, discrete = VP(), DiscreteVP()
    start, end = ends(vp)
    for table, tolerance in (
        (reverse_sde(T, 1e-4), 2e-3),
        (exponential_sde(T, 1e-4), 2e-3),
        (probability_flow(T, 1e-4), 2e-3),
        (dpm_solver_pp(T, 200), 1e-4),
        (dpm_solver_pp(T, 200, stochastic=True), 1e-4),
    ):
        assert moment_error(table, start, end)[1] < tolerance
    begin = (discrete.alpha_bar(299) ** 0.5, (1 - discrete.alpha_bar(299)) ** 0.5)
    for table in (
        strided(range(299, -1, -1), eta=0.0, clip_x0=False),
        ancestral(range(299, -1, -1), "small", clip_x0=False),
        ancestral(range(299, -1, -1), "large", clip_x0=False),
    ):
        assert moment_error(table, begin, (1.0, 0.0))[1] < 5e-3


def test_strided_eta_one_is_ancestral_on_unit_strides():
    small = ancestral(range(99, -1, -1), "small", clip_x0=False)
    assert small == strided(range(99, -1, -1), eta=1.0, clip_x0=False)
