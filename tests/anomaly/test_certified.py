"""Certified scores against a linear score, whose percentiles and radii are known, and against attacks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor

import fastpure as fp
from fastpure.anomaly import ScoreCertificates, ScoreSmoothing
from fastpure.certify import percentile_ranks
from fastpure.certify.bounds import shifted_level
from fastpure.data import load_dataset
from fastpure.errors import NonFiniteError, ResumeError
from fastpure.schedule import VP
from tests.train.helpers import RoughDenoiser, fresh

SIGMA = 0.25
W = torch.randn(12, generator=torch.Generator().manual_seed(0))
NORM = float(W.norm())
RARE = 1e-6
"""So small that no statement here is wrong; how often they are is another test."""


def linear(y: Tensor) -> Tensor:
    """Under noise this is Gaussian of deviation SIGMA |W|; a change of norm r moves it by at most r |W|."""
    return y.flatten(1) @ W


def _images(count: int) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("level", [0.1, 0.5, 0.97])
def test_percentiles_of_changed_images_are_bounded_and_no_further_than_they_must_be(level: float) -> None:
    x, n = _images(15), 3000
    found = ScoreSmoothing(linear, SIGMA, batch_size=3001).certify(x, n0=1, n=n, alpha=RARE)
    middle = linear(x).double() + SIGMA * NORM * math.sqrt(2) * torch.erfinv(torch.tensor(2 * level - 1.0))
    for radius in (0.0, 0.1, 0.3):
        lower, upper = found.bounds(radius, level)
        assert (lower <= middle - radius * NORM).all()
        assert (upper >= middle + radius * NORM).all()
        for bound, level_there in (
            (lower, shifted_level(level, -radius / SIGMA)),
            (upper, shifted_level(level, radius / SIGMA)),
        ):
            if not 0.02 < level_there < 0.98:
                continue
            # An order statistic is within 4.8 (alpha) plus 4 standard errors of its percentile.
            z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * level_there - 1.0)))
            density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            error = math.sqrt(level_there * (1 - level_there) / n) / density
            sign = 1 if bound is upper else -1
            reach = middle + sign * radius * NORM
            assert ((bound - reach).abs() < 9 * error * SIGMA * NORM).all()


def test_too_few_draws_bound_nothing() -> None:
    found = ScoreSmoothing(linear, SIGMA).certify(_images(2), n0=1, n=50)
    lower, upper = found.bounds(1.0)
    assert bool((lower == -math.inf).all() and (upper == math.inf).all())
    assert found.certified_auc(torch.tensor([True, False]), 1.0) == 0.0


@pytest.mark.parametrize("level", [0.0, 0.003, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 20, 300])
def test_ranks_are_the_nearest_that_hold_as_often_as_promised(n: int, level: float) -> None:
    for alpha in (0.05, 0.001):
        low, high = percentile_ranks(n, level, alpha)
        below = [float(binom.cdf(k - 1, n, level)) for k in range(n + 2)]  # P(draw k is above the quantile)
        assert low == 0 or below[low] <= alpha
        assert low == n or below[low + 1] >= alpha
        assert high == n + 1 or below[high] >= 1 - alpha
        assert high == 1 or below[high - 1] < 1 - alpha


def test_bounds_fail_as_rarely_as_promised_also_where_scores_have_steps() -> None:
    draws = torch.rand(4000, 60, generator=torch.Generator().manual_seed(0))
    for score, quantile in ((draws, 0.5), ((draws * 4).floor(), 1.0)):
        found = ScoreCertificates(torch.arange(4000), draws[:, :1], score, SIGMA, 0.05)
        lower, upper = found.bounds(0.0)
        assert (lower > quantile).double().mean() < 0.06
        assert (upper < quantile).double().mean() < 0.06
    wrong = (found.bounds(0.0)[0] > 1).double().mean()
    assert wrong < 0.06


def test_decisions_of_a_linear_score_have_radii_below_the_true_ones_and_near() -> None:
    x, threshold = _images(30), float(linear(_images(30)).median()) + 0.01
    found = (
        ScoreSmoothing(linear, SIGMA, batch_size=9000)
        .certify(x, n0=100, n=6000, alpha=RARE)
        .decide(threshold)
    )
    margin = (linear(x) - threshold).double() / NORM
    decided = found.predicted >= 0
    assert decided.sum() > 20
    assert torch.equal(found.predicted[decided], (margin > 0).long()[decided])
    assert (found.radius <= margin.abs()).all()
    clear = decided & (margin.abs() > 0.1) & (margin.abs() < 0.5)
    assert clear.sum() > 8
    assert (found.radius > 0.7 * margin.abs())[clear].all()


def test_certified_auc_is_that_of_the_worst_changes() -> None:
    x = _images(30)
    score = linear(x).double()
    anomalous = score + 0.8 * torch.randn(30, generator=torch.Generator().manual_seed(2)) > score.median()
    found = ScoreSmoothing(linear, SIGMA, batch_size=9000).certify(x, n0=1, n=5000, alpha=RARE)
    before = 1.0
    for radius in (0.0, 0.05, 0.2):
        gap = score[anomalous][:, None] - score[~anomalous][None, :] - 2 * radius * NORM
        exact, slack = float((gap > 0).double().mean()), 0.3
        certified = found.certified_auc(anomalous, radius)
        assert certified <= exact
        assert certified >= float((gap > slack * SIGMA * NORM).double().mean())
        assert certified <= before
        before = certified


def test_scores_depend_on_neither_batch_size_nor_company() -> None:
    x = _images(4)
    whole = ScoreSmoothing(linear, SIGMA, batch_size=1000).certify(x, n0=20, n=100)
    parts = ScoreSmoothing(linear, SIGMA, batch_size=7).certify(x[2:], [2, 3], n0=20, n=100)
    torch.testing.assert_close(whole.scores[2:], parts.scores)
    torch.testing.assert_close(whole.chosen[2:], parts.chosen)
    assert not torch.equal(whole.scores[2], whole.scores[3] - linear(x)[3] + linear(x)[2])


def _detector(prediction: str = "eps", time_input: str = "continuous", seed: int = 0) -> fp.AnomalyDetector:
    denoiser = fp.Denoiser.from_module(fresh(RoughDenoiser), prediction, time_input, (1, 8, 8)).eval()
    return fp.AnomalyDetector(denoiser, scales=(1, 2), seed=seed)


def _digits(count: int) -> Tensor:
    return load_dataset("digits", "test").images[:count]


def test_the_score_of_a_noisy_image_follows_its_formula() -> None:
    detector, noisy = _detector().fit(_digits(10), draws=1, sigma=0.1), _digits(5) + 0.1
    alpha = 1 / math.sqrt(1.04)
    label = torch.full((5,), 999 * VP().time_of(-math.log(0.2)))
    image = 2 * noisy - 1
    state = alpha * image
    rebuilt = (state - 0.2 * alpha * detector.denoiser.network(state, label)) / alpha
    error = ((rebuilt - image) ** 2) / 2
    coarse = (F.avg_pool2d(rebuilt - image, 2) ** 2) / 2
    error = error + F.interpolate(coarse, size=(8, 8), mode="bilinear")
    maps = F.avg_pool2d(error, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(detector.noisy_error_map(noisy), maps, rtol=1e-4, atol=1e-6)
    expected = (maps - detector.noisy_mean_error).abs().amax((1, 2, 3))
    torch.testing.assert_close(detector.noisy_score(noisy), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("prediction", "time_input"), [("eps", "index"), ("x0", "sigma"), ("v", "continuous")]
)
def test_a_denoiser_that_knows_the_image_leaves_the_noise_in_every_convention(
    prediction: str, time_input: str
) -> None:
    x = _digits(3)
    alpha = 1 / math.sqrt(1 + 0.2**2)

    class Oracle(torch.nn.Module):
        def forward(self, seen: Tensor, labels: Tensor) -> Tensor:
            x0 = 2 * x - 1
            if prediction == "x0":
                torch.testing.assert_close(labels, torch.full((3,), 0.2))
                return x0
            noise = (seen - alpha * x0) / (0.2 * alpha)
            return alpha * noise - 0.2 * alpha * x0 if prediction == "v" else noise

    denoiser = fp.Denoiser.from_module(Oracle(), prediction, time_input, (1, 8, 8))
    detector = fp.AnomalyDetector(denoiser, scales=(1,), window=1)
    detector.sigma = 0.1
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found = detector.noisy_error_map(x + 0.1 * noise)
    torch.testing.assert_close(found, (0.2 * noise) ** 2, rtol=1e-3, atol=1e-5)


def test_a_flow_network_is_told_its_own_time() -> None:
    told: list[Tensor] = []

    class Told(torch.nn.Module):
        def forward(self, seen: Tensor, labels: Tensor) -> Tensor:
            told.append(labels)
            return 0.0 * seen

    denoiser = fp.Denoiser.from_module(Told().eval(), "flow", image_shape=(1, 8, 8), schedule="flow")
    detector = fp.AnomalyDetector(denoiser)
    detector.sigma = 0.25
    detector.noisy_error_map(_digits(2))
    assert denoiser.path is not None
    # x0 + 0.5 n, divided by 1.5, lies a third of the way to the noise.
    torch.testing.assert_close(
        told[0].double(), torch.full((2,), 1000.0 / 3.0, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_what_a_detector_certifies_survives_changes_of_the_image() -> None:
    """Along the score's own gradient, which is where a bound that does not hold would be crossed first."""
    detector = fp.AnomalyDetector(fp.load_denoiser("digits")).fit(_digits(20), draws=1, sigma=0.1)
    noise = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.cat([_digits(22)[20:], noise]) * 0.8 + 0.1
    anomalous = torch.tensor([False, False, True, True])
    found = detector.certify(x, n0=20, n=200)
    assert found.certified_auc(anomalous, 0.0) == 1.0
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(detector.noisy_score(leaf).sum(), leaf)
    step = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    radius = 0.1
    lower, upper = found.bounds(radius)
    for sign in (1, -1):
        moved = (x + sign * radius * step).clamp(0, 1)
        median = detector.certify(moved, [10, 11, 12, 13], n0=1, n=200).scores.double().median(1).values
        assert (lower <= median).all()
        assert (median <= upper).all()


def test_a_file_of_scores_continues_and_belongs_to_one_detector(tmp_path: Path) -> None:
    detector, x = _detector().fit(_digits(10), draws=1, sigma=0.1), _digits(4)
    whole = detector.certify(x, [5, 6, 7, 8], n0=3, n=12, out=tmp_path / "whole.csv")
    rows = (tmp_path / "whole.csv").read_text().splitlines(keepends=True)
    path = tmp_path / "cut.csv"
    path.write_text("".join(rows[:4]) + rows[4][:40])
    news: list[tuple[int, bool]] = []
    again = detector.certify(
        x, [5, 6, 7, 8], n0=3, n=12, out=path, batch_size=4, report=lambda name, new: news.append((name, new))
    )
    assert news == [(5, False), (6, False), (7, True), (8, True)]
    torch.testing.assert_close(again.scores, whole.scores, rtol=1e-5, atol=0)
    assert torch.equal(again.scores[:2], whole.scores[:2])
    before = path.read_bytes()
    for other, images, change in (
        (_detector(seed=1).fit(_digits(10), draws=1, sigma=0.1), x, "seed"),
        (_detector().fit(_digits(9), draws=1, sigma=0.1), x, "detector"),
        (detector, x.flip(3), "images"),
    ):
        with pytest.raises(ResumeError, match=f"{change}: saved"):
            other.certify(images, [5, 6, 7, 8], n0=3, n=12, out=path)
    assert path.read_bytes() == before


def test_mistakes_are_named() -> None:
    detector = _detector().fit(_digits(4), draws=1)
    assert set(detector.state_dict()) >= {"mean_error"}
    assert "noisy_mean_error" not in detector.state_dict()
    with pytest.raises(RuntimeError, match=r"call fit\(normal, sigma=...\) first"):
        detector.certify(_digits(1))
    with pytest.raises(ValueError, match="`sigma` must be"):
        detector.fit(_digits(4), sigma=0.0)
    found = ScoreSmoothing(linear, SIGMA).certify(_images(2), n0=1, n=5)
    for anomalous in (torch.tensor([1, 0]), torch.tensor([True, True])):
        with pytest.raises(ValueError, match="`anomalous` must be"):
            found.certified_auc(anomalous, 0.1)
    with pytest.raises(ValueError, match="`radius` must be"):
        found.bounds(-0.1)
    with pytest.raises(ValueError, match="`level` must be"):
        found.bounds(0.1, 1.0)
    with pytest.raises(ValueError, match="`alpha` must be"):
        ScoreSmoothing(linear, SIGMA).certify(_images(1), alpha=0.0)
    with pytest.raises(NonFiniteError, match="the score answered NaN"):
        ScoreSmoothing(lambda y: linear(y) * torch.nan, SIGMA).certify(_images(1), n0=1, n=5)
