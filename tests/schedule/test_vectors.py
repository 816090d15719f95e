"""Coefficients against the published values, and the mistakes that are easy to make in a time grid."""

import math

import numpy as np
import pytest

from fastpure.schedule import (
    VP,
    DiscreteVP,
    Row,
    StepTable,
    ancestral,
    dpm_solver_pp,
    forward_diffusion,
    probability_flow,
    reverse_sde,
    strided,
)

REL = 2e-8


def test_schedule_anchors():
    discrete, vp = DiscreteVP(), VP()
    anchors = {99: 0.897018, 100: 0.895142, 74: 0.939121, 36: 0.983172, 35: 0.983976, 199: 0.659039}
    for index, value in anchors.items():
        assert discrete.alpha_bar(index) == pytest.approx(value, abs=5e-7)
    assert vp.alpha_bar(0.1) == pytest.approx(0.896282, abs=5e-7)
    assert vp.alpha_bar(0.075) == pytest.approx(0.938503, abs=5e-7)
    assert vp.sigma(0.1) == pytest.approx(0.322053, abs=5e-7)
    assert vp.sigma(0.001) == pytest.approx(0.010485, abs=5e-7)
    assert vp.sigma(1e-5) == pytest.approx(0.001000, abs=5e-7)
    assert discrete.alpha_bar(-1) == 1.0


@pytest.mark.parametrize("t", [1e-5, 1e-3, 0.1, 0.7, 1.0])
def test_time_of_inverts_log_snr(t):
    vp = VP()
    assert vp.time_of(vp.log_snr_half(t)) == pytest.approx(t, rel=1e-9)


@pytest.mark.parametrize(
    ("t", "a", "b", "d", "tau"),
    [
        (0.100, 1.001045, -0.0064896244, 0.0457165178, 99.9),
        (0.050, 1.0005475, -0.0063825721, 0.0330907842, 49.95),
        (0.001, 1.0000593505, -0.0113205805, 0.0108949989, 0.999),
    ],
)
def test_euler_maruyama_vectors(t, a, b, d, tau):
    row = next(row for row in reverse_sde(0.1, 1e-3).rows if abs(row.t - t) < 1e-9)
    assert (row.a, row.b, row.d, row.tau) == pytest.approx((a, b, d, tau), rel=REL)


@pytest.mark.parametrize(("t", "calls"), [(0.1, 100), (0.075, 75), (0.15, 150), (0.001, 1)])
def test_diffpure_grid(t, calls):
    table = reverse_sde(t, 1e-3)
    assert len(table) == table.n_network_calls == calls
    assert table.rows[-1].d > 0, "DiffPure adds noise on the last step too"
    last = VP().beta(0.001) * 9.9e-4
    assert table.rows[-1].d == pytest.approx(math.sqrt(last), rel=1e-9), (
        "the last step ends at 1e-5, not at 0"
    )
    assert list(table.column("index")) == list(range(calls, 0, -1)), "no label repeated, none skipped"


def test_whole_run_amplification():
    vp = VP()
    beta_h = [vp.beta(0.1 - 1e-3 * k) * 1e-3 for k in range(100)]
    assert sum(beta_h) == pytest.approx(0.110495, rel=1e-9)
    assert np.prod([1 + 0.5 * x for x in beta_h]) == pytest.approx(1.0567817, rel=1e-7)


@pytest.mark.parametrize(
    ("i", "a", "b", "large", "small"),
    [
        (99, 1.0010376489, -0.0064636066, 0.0455200184, 0.0451064991),
        (35, 1.0003988371, -0.0063001542, 0.0282346808, 0.0275343655),
        (0, 1.0000500038, -0.0100005000, 0.0, 0.0),
    ],
)
def test_ancestral_vectors(i, a, b, large, small):
    for variance, d in (("large", large), ("small", small)):
        row = ancestral(range(99, -1, -1), variance).rows[99 - i]
        assert (row.a, row.b) == pytest.approx((a, b), rel=REL)
        assert row.d == pytest.approx(d, rel=1e-8, abs=1e-12)
        assert (row.tau, row.index) == (i, i)


@pytest.mark.parametrize(
    ("k", "a", "b", "d"),
    [
        (0, 1.0764283522, -0.2524838780, 0.3081393983),
        (2, 1.0425655813, -0.2205021431, 0.1957595366),
        (4, 1.0098195833, -0.1404834185, 0.0),
    ],
)
def test_strided_vectors(k, a, b, d):
    row = strided([199, 159, 119, 79, 39], eta=1.0, clip_x0=False).rows[k]
    assert (row.a, row.b) == pytest.approx((a, b), rel=REL)
    assert row.d == pytest.approx(d, rel=1e-8, abs=1e-12)


def test_revised_ddim_vectors():
    schedule = DiscreteVP(beta_start=1e-6)
    start = forward_diffusion(schedule.alpha_bar(100)).rows[0]
    assert (start.a, start.d) == pytest.approx((0.9506279553, 0.3103328707), rel=REL)
    rows = strided([99, 79, 59, 39, 19], schedule=schedule).rows
    for k, (a, b) in {
        0: (1.0181051230, -0.0651572027),
        2: (1.0099738144, -0.0639899902),
        4: (1.0019138854, -0.0618985760),
    }.items():
        assert (rows[k].a, rows[k].b) == pytest.approx((a, b), rel=REL)


def test_guidance_coefficient_is_scale_times_beta_h():
    row = reverse_sde(0.1, 1e-3).guided(3.0).rows[0]
    assert row.c == pytest.approx(3.0 * 0.00209, rel=1e-9)
    guided = dpm_solver_pp(0.1, 4).guided(2.0)
    assert [row.u for row in guided.rows] == pytest.approx([-2 * row.sigma * row.r for row in guided.rows])


def test_odd_steps_end_at_t_eps():
    table = reverse_sde(0.1, 0.03)
    assert list(table.column("t")) == pytest.approx([0.1, 0.07, 0.04, 0.01])
    assert reverse_sde(0.1, 5e-3).rows[-1].d == pytest.approx(math.sqrt(VP().beta(0.005) * 0.00499), rel=1e-9)
    assert len(reverse_sde(0.1, 0.1)) == 1
    assert not probability_flow(0.1, 1e-3).column("d").any()


def test_tables_are_values():
    assert reverse_sde(0.1, 1e-3) == reverse_sde(0.1, 1e-3)
    assert hash(reverse_sde(0.1, 1e-3)) == hash(reverse_sde(0.1, 1e-3))
    assert reverse_sde(0.1, 1e-3).digest != reverse_sde(0.1, 2e-3).digest
    double = forward_diffusion(0.9) + reverse_sde(0.1, 0.05)
    assert len(double) == 3
    assert double.n_forward_rows == 1
    assert double.matrix.shape == (3, 16)
    assert not double.matrix[:, 12:].any()
    with pytest.raises(ValueError, match="read-only"):
        double.matrix[0, 0] = 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reverse_sde(0.0, 1e-3), "`t` must be a finite number above 0, got 0"),
        (lambda: reverse_sde(1.5, 1e-3), r"`t` must be a diffusion time in \(0, 1\], got 1.5"),
        (lambda: reverse_sde(0.1, 0.0), "`dt` must be a finite number above 0"),
        (lambda: reverse_sde(0.1, -1e-3), "`dt` must be a finite number above 0"),
        (lambda: reverse_sde(0.1, 0.2), "`dt` must be at most t = 0.1"),
        (lambda: reverse_sde(float("nan"), 1e-3), "`t` must be a finite number"),
        (lambda: ancestral([3, 2, 1], variance="learned"), "`variance` must be one of 'small', 'large'"),
        (lambda: strided([1, 2, 3]), "strictly descending"),
        (lambda: strided([1000]), r"`indices` must be an integer in \[0, 999\]"),
        (lambda: strided([5], eta=1.5), r"`eta` must be in \[0, 1\]"),
        (lambda: forward_diffusion(1.0), "`alpha_bar` must be between 0 and 1"),
        (lambda: StepTable(()), "at least one Row"),
        (lambda: StepTable((Row(a=float("inf")),)), "finite coefficients"),
        (lambda: StepTable((Row(a=1.0, b=1.0),)), "sigma > 0"),
        (lambda: StepTable((Row(a=1.0, p=1.0),)), "register written before"),
        (lambda: VP(beta_max=0.01), "`beta_max` must be above beta_min"),
    ],
)
def test_mistakes_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_wrong_types_are_type_errors():
    with pytest.raises(TypeError, match="`t` must be a positive number, got str"):
        reverse_sde("0.1", 1e-3)
    with pytest.raises(TypeError, match="`indices` must be an integer"):
        strided([1.5])
