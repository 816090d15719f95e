"""Steps, network calls and coefficients of the methods as their papers and releases have them."""

from __future__ import annotations

import pytest

import fastpure as fp
from tests.methods.cases import auxiliary
from tests.reverse.toys import toy_classifier


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        (lambda: fp.methods.adbm(), 5),
        (lambda: fp.methods.adbm(rounds=3), 15),
        (lambda: fp.methods.addt("ddpm"), 101),
        (lambda: fp.methods.addt("ddpm", 100), 11),
        (lambda: fp.methods.addt("ddim", 50), 6),
        (lambda: fp.methods.addt("vp"), 202),
        (lambda: fp.methods.addt("vp", corrector=False), 101),
        (lambda: fp.methods.vp_sde(corrector=False), 101),
        (lambda: fp.methods.adbm(sampler="dpm_solver"), 5),
        (lambda: fp.methods.agdm(auxiliary(), t=0.072, chain=250), 18),
        (lambda: fp.methods.addt("edm"), 99),
        (lambda: fp.methods.gradual(), 470),
        (lambda: fp.methods.gradual(fp.methods.SURROGATE), 7),
        (lambda: fp.methods.one_shot(), 1),
        (lambda: fp.methods.gdmp(), 144),
        (lambda: fp.methods.agdm(auxiliary()), 70),
        (lambda: fp.methods.agdm(auxiliary(), sampler="sde"), 70),
        (lambda: fp.methods.likelihood_max(), 5),
        (lambda: fp.methods.adp(), 20),
    ],
)
def test_network_calls(method, calls):
    assert method().table().n_network_calls == calls


def test_indices_as_published():
    def indices(method):
        return [row.index for row in method.table().rows if not row.forward]

    assert indices(fp.methods.adbm()) == [99, 79, 59, 39, 19]
    assert indices(fp.methods.addt("ddpm"))[:2] == [100, 99]
    assert indices(fp.methods.addt("ddim", 100)) == list(range(100, -1, -10))
    assert indices(fp.methods.gradual(fp.methods.SURROGATE)) == [29, 49, 124, 99, 74, 49, 24]
    assert indices(fp.methods.gradual(((200, 5),))) == [199, 159, 119, 79, 39]
    vp = fp.methods.addt("vp").table()
    assert vp.rows[1].t == 0.101
    assert vp.rows[-1].t == 0.001
    assert vp.rows[-1].d == 0.0, "the mean of the last step is returned"
    assert vp.rows[-3].d > 0.0


def test_adbm_schedules():
    released, training = (fp.methods.adbm(schedule=s).table() for s in ("released", "training"))
    assert released.rows[0].a == pytest.approx(0.9506279553, rel=1e-9)
    assert released.rows[0].d == pytest.approx(0.3103328707, rel=1e-9)
    assert [row.tau for row in released.rows[1:]] == [99.0, 79.0, 59.0, 39.0, 19.0]
    assert released.rows[1].b == pytest.approx(-0.0651572027, rel=2e-8)
    assert training.rows[0].a ** 2 == pytest.approx(0.896282, abs=5e-7)
    assert training.rows[0].a == pytest.approx(training.rows[1].alpha, rel=1e-12), "no mismatch here"
    assert [row.tau for row in training.rows[1:]] == pytest.approx([99.9, 79.92, 59.94, 39.96, 19.98])


def test_adbm_s_ddpm_has_the_large_variance():
    """0.18775 at index 99 as released; the posterior's would be 0.15135."""
    large, small = (
        fp.methods.adbm(sampler="ddpm", **settings).table() for settings in ({}, {"variance": "small"})
    )
    assert large.rows[1].index == 99
    assert large.rows[1].d == pytest.approx(0.18775, abs=5e-6)
    assert small.rows[1].d == pytest.approx(0.15135, abs=5e-6)
    assert large.rows[-1].d == small.rows[-1].d == 0.0


def test_without_the_corrector_the_predictor_s_rows_are_left_and_the_rows_are_the_method():
    """DW-box: an affine table, no rule of its own, and the last step's mean."""
    both, alone = (fp.methods.addt("vp", corrector=corrector) for corrector in (True, False))
    assert alone.procedure is None
    assert alone.table().rows[1:] == both.table().rows[2::2]
    assert alone.table().rows[0] == both.table().rows[0]
    assert alone.table().rows[-1].d == 0.0
    assert alone.table().rows[-2].d > 0.0
    assert alone == fp.presets["addt-vpsde-dw-cifar10-linf"].method()
    assert alone.table() == fp.methods.vp_sde(corrector=False).table()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "edm"])
def test_coup_is_added_to_the_score(sampler):
    plain, guided = (
        fp.methods.addt(sampler, 10, classifier=network, scale=2.0) for network in (None, toy_classifier())
    )
    assert "with COUP's guidance" in str(guided)
    for before, after in zip(plain.table().rows, guided.table().rows, strict=True):
        assert (after.a, after.b, after.d) == (before.a, before.b, before.d)
        assert after.c == pytest.approx(-2.0 * before.sigma * before.b)
        assert after.u == pytest.approx(-2.0 * before.sigma * before.r)


def test_agdm_coefficients():
    network = auxiliary()
    ddpm = fp.methods.agdm(network, scale=3.0).table()
    assert ddpm.rows[0].a ** 2 == pytest.approx(fp.methods.ddpm(t=0.07).table().rows[0].a ** 2)
    assert [ddpm.rows[1].index, ddpm.rows[-1].index] == [69, 0]
    beta = 1e-4 + 69 * (2e-2 - 1e-4) / 999
    assert ddpm.rows[1].c == pytest.approx(3.0 * beta, rel=1e-12)
    sde = fp.methods.agdm(network, scale=3.0, sampler="sde").table()
    assert sde.rows[1].c == pytest.approx(3.0 * (0.1 + 19.9 * 0.07) * 1e-3, rel=1e-12)


def test_smoothing_takes_the_first_sufficient_step():
    for schedule, n in (("linear", 1000), ("cosine", 4000)):
        for sigma in (0.25, 0.5, 1.0):
            method = fp.methods.one_shot(sigma, schedule)
            forward, shot = method.table().rows
            assert forward.d / forward.a >= 2 * sigma
            assert forward.d / forward.a < 2 * sigma * (1 + 20 / n)
            assert (shot.alpha, shot.sigma) == pytest.approx((forward.a, forward.d))
            assert shot.a == pytest.approx(1 / forward.a)
            assert shot.clip
            assert method.schedule == schedule
