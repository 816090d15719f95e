"""The EDM, Langevin and predictor-corrector tables, and schedules other than DDPM's."""

import math

import numpy as np
import pytest

from fastpure.schedule import (
    VP,
    CosineVP,
    DiscreteVP,
    SampledVP,
    dpm_solver_pp,
    dpm_solver_strided,
    edm,
    guidance_variances,
    karras_grid,
    langevin,
    predictor_corrector,
    strided,
    variance_range,
)
from fastpure.schedule.edm import CHURN_MAX, alpha_of
from fastpure.schedule.table import StepTable
from tests.schedule.test_convergence import MEAN, STD, moment_error, order, propagate

TOP = 1.5


@pytest.mark.parametrize(("heun", "expected"), [(True, 2.0), (False, 1.0)])
def test_edm_orders(heun, expected):
    start = (alpha_of(TOP), alpha_of(TOP) * TOP)
    errors = []
    for n in (32, 64, 128, 256):
        table = edm(TOP, 1e-5, n, churn=0.0, heun=heun)
        errors.append(moment_error(table, start, (1.0, 0.0))[1])
    assert order(errors) == pytest.approx(expected, abs=0.3)


def test_churn_does_not_change_the_law():
    start = (alpha_of(TOP), alpha_of(TOP) * TOP)
    churned = edm(TOP, 1e-5, 256, churn=40.0, s_noise=1.0)
    assert moment_error(churned, start, (1.0, 0.0))[1] < 2e-3
    assert churned.column("d").any()
    assert moment_error(edm(TOP, 1e-5, 256, churn=40.0, s_noise=1.1), start, (1.0, 0.0))[1] > 5e-3


def test_karras_grid():
    grid = karras_grid(0.5, 0.002, 50)
    assert len(grid) == 51
    assert (grid[0], grid[49], grid[50]) == pytest.approx((0.5, 0.002, 0.0))
    assert np.diff(grid[:50] ** (1 / 7)) == pytest.approx(grid[1] ** (1 / 7) - grid[0] ** (1 / 7))
    assert karras_grid(0.5, 0.002, 1) == pytest.approx([0.5, 0.0])


def test_edm_levels_are_what_the_networks_are_told():
    table = edm()
    calls = [row for row in table.rows if row.calls_network]
    raised = 0.5 * (1 + 6 / 50)
    assert CHURN_MAX > 6 / 50
    assert calls[0].sigma / calls[0].alpha == pytest.approx(raised, rel=1e-12), (
        "a sigma network is told sigma"
    )
    for row in calls:
        assert VP().sigma(row.t) / VP().alpha(row.t) == pytest.approx(row.sigma / row.alpha, rel=1e-9)
        assert row.alpha**2 + row.sigma**2 == pytest.approx(1.0, rel=1e-12)
        assert row.tau == pytest.approx(999 * row.t)
    assert table.rows[-1].a == pytest.approx(1 / table.rows[-1].alpha), "the last step reaches the image"
    assert not any(row.p for row in edm(heun=False).rows)
    assert not edm(churn=0.0).column("d").any()


def test_predictor_corrector_rows():
    table = predictor_corrector()
    assert len(table) == 1 + 2 * 101
    forward, corrector, predictor = table.rows[:3]
    assert (forward.a, forward.d) == pytest.approx((VP().alpha(0.101), VP().sigma(0.101)))
    index = math.floor(999 * 0.101)
    step = 2 * (1 - (1e-4 + index * (2e-2 - 1e-4) / 999)) * (0.16 * VP().sigma(0.101)) ** 2
    assert corrector.b == pytest.approx(-step / VP().sigma(0.101), rel=1e-12)
    assert corrector.d == pytest.approx(math.sqrt(2 * step), rel=1e-12)
    rate = VP().beta(0.101) / 1000
    assert predictor.a == pytest.approx(1 + rate / 2, rel=1e-12)
    assert (predictor.b, predictor.d) == pytest.approx(
        (-rate / VP().sigma(0.101), math.sqrt(rate)), rel=1e-12
    )
    assert predictor_corrector(0.2).rows[1].t == 0.201
    assert predictor_corrector(1.0, 10).rows[1].t == 1.0
    with pytest.raises(ValueError, match="`strength` must be a finite number above 0"):
        predictor_corrector(0.0)


def test_langevin_rows_repeat():
    table = langevin(0.01, 0.01, 100, 0.01, 5.0)
    assert len(set(table.rows)) == 1
    row = table.rows[0]
    assert (row.a, row.c, row.d) == pytest.approx((1.0, 5e-5, 0.05))
    assert row.b == pytest.approx(-5e-5 / VP().sigma(0.01))
    assert row.tau == pytest.approx(9.99)


def test_cosine_schedule():
    cosine = CosineVP()
    assert cosine.alpha_bar(-1) == 1.0
    expected = (math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    assert cosine.alpha_bar(1999) == pytest.approx(expected, rel=1e-9)
    assert 0 < cosine.alpha_bar(3999) < 1e-6
    assert (np.diff(cosine.alpha_bars) < 0).all()


def test_the_continuous_schedule_on_indices():
    sampled = SampledVP()
    assert sampled.alpha_bar(99) == VP().alpha_bar(0.1)
    row = strided([99, 49], schedule=sampled).rows[0]
    assert row.tau == pytest.approx(99.9)
    assert row.sigma == pytest.approx(VP().sigma(0.1))


def test_the_last_guidance_variance_is_borrowed():
    indices = range(9, -1, -1)
    betas, bars = DiscreteVP().betas, DiscreteVP().alpha_bars
    small = [betas[i] * (1 - bars[i - 1]) / (1 - bars[i]) for i in range(9, 0, -1)]
    assert guidance_variances(indices, "small") == pytest.approx([*small, small[-1]], rel=1e-9)
    assert guidance_variances(indices, "large") == pytest.approx([*betas[9:0:-1], small[-1]], rel=1e-9)
    assert guidance_variances([0]) == pytest.approx(small[-1:], rel=1e-9)


def test_a_solver_over_indices_is_of_second_order_though_its_steps_are_uneven():
    """Evenly spaced indices are uneven in log(alpha / sigma); the last row, which ends at the image, is left out."""
    chain = DiscreteVP(1e-4 / 16, 2e-2 / 16, 16000)
    errors = []
    for n in (10, 20, 40, 80):
        table = dpm_solver_strided(range(4799, 158, -4640 // n), schedule=chain)
        start, end = ((row.alpha, row.sigma) for row in (table.rows[0], table.rows[-1]))
        variance = start[0] ** 2 * STD**2 + start[1] ** 2
        mean, _ = propagate(StepTable(table.rows[:-1]), start[0] * MEAN + 1.0, variance)
        exact = end[0] * MEAN + math.sqrt((end[0] ** 2 * STD**2 + end[1] ** 2) / variance)
        errors.append(abs(mean - exact))
    assert order(errors) == pytest.approx(2.0, abs=0.2)


def test_a_solver_over_indices_is_dpm_solver_where_steps_are_even():
    """Three rows of equal steps: the register's share is half of what the prediction alone gains."""

    class Even(DiscreteVP):
        def alpha_bar(self, index: int) -> float:
            return 1.0 if index < 0 else 1.0 / (1.0 + math.exp(-2.0 * (3.0 - 0.5 * index)))

    table, h = dpm_solver_strided([4, 3, 2, 1], schedule=Even()), 0.5
    for row, after in zip(table.rows[1:-1], table.rows[2:], strict=True):
        gain = -after.alpha * math.expm1(-h)
        assert row.p == pytest.approx(-0.5 * gain, rel=1e-12)
        assert row.a == pytest.approx(after.sigma / row.sigma + 1.5 * gain / row.alpha, rel=1e-12)
        assert row.b == pytest.approx(-1.5 * gain * row.sigma / row.alpha, rel=1e-12)
    reference = dpm_solver_pp(0.1, 3).rows[1]
    assert {name for name in "abpqr" if getattr(table.rows[1], name)} == {
        name for name in "abpqr" if getattr(reference, name)
    }
    last, plain = table.rows[-1], strided([4, 3, 2, 1], 0.0, False, Even()).rows[-1]
    assert last == plain, "the predicted image"
    assert dpm_solver_strided([7]) == strided([7], 0.0, False)


def test_a_learned_variance_lies_between_the_two():
    bounds = variance_range([99, 79, 0])
    power = DiscreteVP().alpha_bar
    assert bounds[0][1] == pytest.approx(1 - power(99) / power(79), rel=1e-12)
    assert bounds[0][0] == pytest.approx(bounds[0][1] * (1 - power(79)) / (1 - power(99)), rel=1e-12)
    assert bounds[2] == pytest.approx((bounds[1][0], 1 - power(0)), rel=1e-12)
    assert [low for low, _ in bounds] == guidance_variances([99, 79, 0], "small")
