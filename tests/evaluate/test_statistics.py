"""Statistics against values worked out by hand, and every sign of a weak attack on a case made to show it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.attacks.weakness import easier, still_rising, unmoved, zero_gradients
from fastpure.evaluate import GaussianNoise, Run, across, compare_values, restart_spread, worst_of
from fastpure.evaluate.statistics import chosen_worst, cochran_q, draw_spread, mcnemar
from fastpure.evaluate.weakness import findings, gradient_mode
from tests.evaluate.toys import attack, dataset, run_file


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),  # both tails of five coins that all fall alike
        (1, 7, 2 * (1 + 8) / 256),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(wins, losses, expected):
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(losses, wins) == mcnemar(wins, losses)


def test_cochran_q_by_hand():
    # K = 3 columns with sums 3, 2, 0; rows with sums 2, 2, 1, 0: the last row is not mixed.
    table = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    q, p = cochran_q(table)
    scatter = (3 - 5 / 3) ** 2 + (2 - 5 / 3) ** 2 + (5 / 3) ** 2
    assert q == pytest.approx(3 * 2 * scatter / (2 * 1 + 2 * 1 + 1 * 2))
    assert p == pytest.approx(math.exp(-q / 2)), "chi-squared with two degrees of freedom"
    assert cochran_q(np.ones((4, 3), dtype=bool)) == (0.0, 1.0)


def test_cochran_q_has_the_right_size_for_independent_draws():
    random = np.random.default_rng(0)
    p_values = [cochran_q(random.random((80, 8)) < random.random((80, 1)))[1] for _ in range(300)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_draw_spread_by_hand():
    spread = draw_spread(np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool))
    assert (spread.lowest, spread.highest, spread.n_draws) == (0.25, 0.75, 4)
    assert spread.undecided == 0.5
    assert spread.std == pytest.approx(np.std([0.75, 0.5, 0.25, 0.75], ddof=1))
    with pytest.raises(ValueError, match="K >= 2"):
        draw_spread(np.ones((3, 1), dtype=bool))


def test_paired_comparison_by_hand():
    a = np.array([1, 1, 1, 0, 0, 0, 1, 1, 0, 1], dtype=float)
    b = np.array([1, 0, 1, 1, 1, 1, 1, 1, 1, 0], dtype=float)
    result = compare_values(a, b)
    assert (result.wins, result.losses, result.n) == (4, 2, 10)
    assert result.difference == pytest.approx(0.2)
    assert result.p_value == pytest.approx(2 * (1 + 6 + 15) / 64)
    # Agresti and Min: (4.5 - 2.5) / 12 +- z sqrt((7 - 2^2/12)) / 12
    centre, half = 2 / 12, 1.959963984540054 * math.sqrt(7 - 4 / 12) / 12
    assert result.low == pytest.approx(centre - half)
    assert result.high == pytest.approx(centre + half)
    back = compare_values(b, a)
    assert (back.wins, back.losses, back.low, back.high) == (2, 4, -result.high, -result.low)
    assert "b - a = +20.0 points" in str(result)


def test_equal_runs_have_an_interval_with_a_length():
    result = compare_values(np.ones(50), np.ones(50))
    assert result.p_value == 1.0
    assert -0.06 < result.low < 0 < result.high < 0.06


def test_paired_test_sees_what_two_intervals_hide():
    random = np.random.default_rng(0)
    a = (random.random(200) < 0.7).astype(float)
    b = a.copy()
    b[np.flatnonzero(a)[:12]] = 0
    result = compare_values(a, b)
    assert result.p_value == 2 / 2**12
    assert result.high < 0


def runs(*values, **settings):
    """Finished in-memory runs of one attack on one draw, with these verdicts."""
    return [
        run_file(None, np.zeros((len(v), 1)), 1 - np.array(v)[:, None], **settings).read() for v in values
    ]


def test_compare_reads_runs_and_refuses_unequal_ones(tmp_path):
    for name, verdicts in (("a", [1, 1, 0, 1]), ("b", [0, 0, 0, 1])):
        run_file(tmp_path / name, np.zeros((4, 1)), 1 - np.array(verdicts)[:, None]).close()
    result = fp.compare(tmp_path / "a", tmp_path / "b")
    assert (result.difference, result.losses, result.protocol) == (-0.5, 2, "fresh(1 draws)")
    assert fp.compare(tmp_path / "a", tmp_path / "b", which="clean").difference == 0
    (a,), (shorter,) = runs([1, 1, 0, 1]), runs([1, 1])
    with pytest.raises(ValueError, match="`run_b` must be on the same images"):
        fp.compare(a, shorter)
    voted = run_file(None, np.zeros((4, 3)), np.zeros((4, 3)), protocol=fp.protocols.majority(3)).read()
    with pytest.raises(ValueError, match="`protocol` must be given where the runs have different ones"):
        fp.compare(a, voted)
    many = run_file(None, np.zeros((4, 3)), np.zeros((4, 3)), protocol=fp.protocols.fresh(3)).read()
    assert fp.compare(many, voted, protocol=fp.protocols.any_of_n(2)).difference == 0


def test_restarts():
    seeds = [
        run_file(None, np.zeros((4, 1)), 1 - np.array(v)[:, None], attack=attack(seed=seed)).read()
        for seed, v in enumerate(([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]))
    ]
    spread = restart_spread(seeds)
    assert spread.accuracies == (0.5, 0.5, 0.75)
    assert spread.worst_case == 0.25
    assert spread.std == pytest.approx(np.std([0.5, 0.5, 0.75], ddof=1))
    with pytest.raises(ValueError, match="alike but for the attack's seed"):
        restart_spread([seeds[0], *runs([1, 1, 1, 1], attack=attack(n_iter=9))])
    with pytest.raises(ValueError, match="at least two"):
        restart_spread(seeds[:1])


def named(found, name):
    (one,) = [finding for finding in found if finding.name == name]
    return one


def test_shared_noise_shows_in_the_draws():
    random = np.random.default_rng(1)
    easy = random.random((300, 1))
    independent = (random.random((300, 6)) > easy).astype(int)
    shared = (0.5 * random.random((300, 6)) + 0.5 * random.random((1, 6)) > easy).astype(int)
    assert not named(findings(run_file(None, independent).read()), "draws").alarm
    finding = named(findings(run_file(None, shared).read()), "draws")
    assert finding.alarm
    assert finding.value < 1e-3
    assert "more than chance" in str(finding)


def test_zero_gradients_alarm():
    ones = np.ones(100)
    few = zero_gradients(np.r_[np.ones(1), np.zeros(99)], ones)
    assert (few.value, few.alarm) == (0.01, False)
    many = zero_gradients(np.r_[np.ones(30), np.zeros(70)], ones)
    assert (many.value, many.alarm) == (0.3, True)
    assert "masked" in str(many)
    wrong_before = np.r_[np.zeros(30), np.ones(70)]
    assert zero_gradients(np.r_[np.ones(30), np.zeros(70)], wrong_before).value == 0.0
    none = zero_gradients(np.full(5, np.nan), np.ones(5))
    assert math.isnan(none.value)
    assert not none.alarm


def test_unmoved_images_alarm():
    distances = np.r_[np.zeros(20), np.full(80, 0.05)]
    assert unmoved(distances, np.ones(100)).alarm
    broken = np.r_[np.zeros(20), np.ones(80)]
    assert not unmoved(distances, broken).alarm, "a broken image needs not move"


def test_an_attack_that_helps_the_defence_alarms():
    clean, robust = np.zeros(40), np.r_[np.ones(30), np.zeros(10)]
    assert easier(clean, robust).alarm
    assert easier(clean, robust).value == 30
    assert not easier(robust, clean).alarm


def test_a_loss_that_still_rises_alarms():
    t = np.linspace(0, 1, 50)[None]
    jitter = np.random.default_rng(0).normal(0, 0.01, (60, 50))
    rising, done = t + jitter, 1 - np.exp(-12 * t) + jitter
    robust = np.ones(60)
    assert still_rising(rising, robust).alarm
    assert still_rising(rising, robust).value == pytest.approx(0.25, abs=0.02)
    assert not still_rising(done, robust).alarm
    assert not still_rising(rising, np.zeros(60)).alarm, "broken images need no more iterations"
    given_up = rising.copy()
    given_up[:30, 25:] = np.nan
    assert still_rising(given_up, robust).alarm


def test_findings_of_a_run_come_from_its_records():
    trace = (
        np.linspace(0, 1, 20)[None] + np.zeros((30, 1)) + np.random.default_rng(0).normal(0, 1e-3, (30, 20))
    )
    clean = np.zeros((30, 2))
    made = attack(n_iter=20)
    zero = [True] * 15 + [False] * 15
    run = run_file(None, clean, clean, attack=made, trace=trace, zero=zero, distance=0.0).read()
    alarms = {finding.name for finding in findings(run) if finding.alarm}
    assert alarms == {"zero gradients", "unmoved images", "unfinished", "evaluation draws"}
    assert {warning.name for warning in fp.Report.of(run).warnings} == alarms
    assert "WARNING   zero gradients: the first gradient is exactly zero at 50.0 %" in str(fp.Report.of(run))


def test_corruptions_are_not_suspected():
    clean = np.zeros((30, 2))
    run = run_file(None, clean, clean, attack=GaussianNoise(), distance=0.0).read()
    signs = {
        "zero gradients",
        "unmoved images",
        "unfinished",
        "iterations",
        "draws per gradient",
        "easier images",
    }
    assert not signs & {finding.name for finding in findings(run)}


N = 60
STRONG, WEAK = [1] * 20 + [0] * 40, [1] * 35 + [0] * 25


@pytest.mark.parametrize("setting", ["n_iter", "eot_iter"])
def test_more_iterations_that_still_help_alarm(setting):
    less, more = attack(**{setting: 2}), attack(**{setting: 20})
    falling = runs(WEAK, attack=less) + runs(STRONG, attack=more)
    finding = named(across(falling), f"more {setting}")
    assert finding.alarm
    assert finding.value == pytest.approx(-15 / 60)
    assert "still falling" in str(finding)
    steady = runs(STRONG, attack=less) + runs(STRONG, attack=more)
    assert not named(across(steady), f"more {setting}").alarm
    assert named(across(falling[::-1]), f"more {setting}") == finding, "the order of the runs does not matter"


@pytest.mark.parametrize("mode", ["bpda", "blind", "surrogate", "detached"])
def test_a_worse_gradient_that_wins_alarms(mode):
    exact, other = runs(WEAK, attack=attack())[0], runs(STRONG, attack=attack(gradient=mode))[0]
    assert (gradient_mode(exact), gradient_mode(other)) == ("exact", mode)
    finding = named(across([exact, other]), f"{mode} against exact")
    assert finding.alarm
    assert "masked" in str(finding)
    right = runs(STRONG, attack=attack()) + runs(WEAK, attack=attack(gradient=mode))
    assert not named(across(right), f"{mode} against exact").alarm


def test_other_defences_budgets_and_protocols_are_left_alone():
    exact = runs(WEAK, attack=attack())[0]
    stronger = attack(gradient="bpda", eps=0.1)
    others = [runs(STRONG, attack=stronger)[0], runs(STRONG, attack=attack(gradient="bpda"), seed=1)[0]]
    assert across([exact, *others]) == ()


def test_a_stronger_attack_with_a_worse_gradient_says_nothing_about_the_gradient():
    exact = runs(WEAK, attack=attack())[0]
    other = runs(STRONG, attack=fp.attacks.APGDCE(eps=attack().eps, gradient="detached"))[0]
    assert exact.identity["attack"]["name"] != other.identity["attack"]["name"]
    assert not [finding for finding in across([exact, other]) if "against exact" in finding.name]


def test_two_runs_without_the_exact_gradient_are_not_held_against_each_other():
    pairs = [
        (attack(gradient="bpda"), fp.attacks.APGDCE(eps=attack().eps, gradient="bpda")),
        (attack(gradient="bpda"), attack(gradient="detached")),
        (moved("diffpure"), moved("gdmp")),
    ]
    for one, two in pairs:
        found = across(runs(WEAK, attack=one) + runs(STRONG, attack=two))
        assert not [finding for finding in found if "against exact" in finding.name]


def test_images_found_elsewhere_that_win_alarm_and_are_named():
    found = across(runs(WEAK, attack=attack()) + runs(STRONG, attack=moved("diffpure")))
    finding = named(found, "transfer against exact")
    assert finding.alarm
    assert "transfer of what was found on diffpure reaches 33.3 %" in str(finding)


def moved(source: str) -> fp.attacks.Transfer:
    x = dataset(1).images
    return fp.attacks.Transfer(found=x, sample_ids=torch.zeros(1).long(), eps=attack().eps, source=source)


def run_of(correct: np.ndarray, protocol=None, seed: int = 0) -> Run:
    """A run whose draws [n, K] are right where this says so."""
    return run_file(
        None, np.zeros_like(correct, dtype=int), 1 - correct.astype(int), protocol=protocol, seed=seed
    ).read()


@pytest.mark.parametrize("draws", [2, 5, 10])
def test_the_worst_of_runs_is_no_minimum_of_coins(draws):
    generator = np.random.default_rng(draws)
    coins = generator.random((9, 4000, draws)) < 0.5
    honest, naive = chosen_worst(coins).mean(), coins.mean(2).min(0).mean()
    assert abs(honest - 0.5) < 4 * 0.5 / (4000 * draws) ** 0.5
    assert naive < 0.4


def test_the_worst_of_runs_finds_what_each_of_them_broke():
    broken = np.ones((20, 4), bool)
    one, two = broken.copy(), broken.copy()
    one[:5], two[5:9] = False, False
    runs = [run_of(one), run_of(two)]
    assert np.array_equal(worst_of(runs), np.where(np.arange(20) < 9, 0.0, 1.0))
    assert np.array_equal(worst_of(runs[:1]), one.mean(1))
    known = [run_of(c[:, :1], fp.protocols.dw_box(transfer_draws=0)) for c in (one, two)]
    assert worst_of(known).sum() == 11


def test_the_worst_of_unlike_runs_is_refused():
    good = np.ones((4, 2), bool)
    with pytest.raises(ValueError, match="`runs` must be at least one"):
        worst_of([])
    with pytest.raises(ValueError, match="alike in defense"):
        worst_of([run_of(good), run_of(good, seed=3)])
    with pytest.raises(ValueError, match="alike in data"):
        worst_of([run_of(good), run_of(np.ones((5, 2), bool))])
    with pytest.raises(ValueError, match="alike in protocol"):
        worst_of([run_of(good), run_of(good, fp.protocols.any_of_n(2))])
    with pytest.raises(ValueError, match="at least two draws of a random defence"):
        worst_of([run_of(good[:, :1])])
    with pytest.raises(ValueError, match="runs with an attack"):
        worst_of([run_file(None, np.zeros((4, 2), int)).read()])
