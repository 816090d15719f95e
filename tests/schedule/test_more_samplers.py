"""The EDM, Langevin and predictor-corrector tables, and schedules other than DDPM's."""

import math

import numpy as np
import pytest

from fastpure.schedule import (
    VP,
    CosineVP,
    DiscreteVP,
    SampledVP,
    edm,
    guidance_variances,
    karras_grid,
    langevin,
    predictor_corrector,
    strided,
)
from fastpure.schedule.edm import CHURN_MAX, alpha_of
from tests.schedule.test_convergence import moment_error, order

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
