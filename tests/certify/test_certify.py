"""Certificates against closed forms, one-shot denoising against its formula, and files that continue."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from typer.testing import CliRunner

import fastpure as fp
from fastpure.certify import (
    CertifyConfig,
    OneShotClassifier,
    Smoothing,
    certified_radius,
    certify_dataset,
    lower_bound,
    rate_at,
    read_records,
)
from fastpure.certify.smoothing import noisy_images
from fastpure.cli.main import app
from fastpure.data import Dataset, load_dataset
from fastpure.errors import ResumeError
from fastpure.evaluate.protocol import FIRST_DRAW
from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal


class Linear(nn.Module):
    """Class 1 where w.u + b > 0: smoothing leaves it as it is, and its radius is |w.u + b| / |w|."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(12, generator=generator))
        self.b = nn.Parameter(-self.w.detach().sum() / 2)
        self.calls = 0

    def margin(self, u: Tensor) -> Tensor:
        return u.flatten(1) @ self.w + self.b

    def forward(self, u: Tensor) -> Tensor:
        self.calls += 1
        margin = self.margin(u)
        return torch.stack([-margin, margin], 1)


def _images(count: int) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def test_certificates_of_a_linear_classifier_stay_below_the_true_radius_and_come_close() -> None:
    model, x, sigma = Linear().eval(), _images(60), 0.25
    with torch.no_grad():
        margin = model.margin(x)
    true = (margin.abs() / model.w.norm()).double()
    found = Smoothing(model, sigma, batch_size=5000).certify(x, n0=100, n=20000)
    decided = found.predicted >= 0
    assert decided.sum() > 50
    assert torch.equal(found.predicted[decided], (margin > 0).long()[decided])
    assert (found.radius <= true).all()
    # p is estimated within 3.1 + 3.1 standard errors, and the radius is at most sigma Phi^-1(alpha^(1/n))
    p = torch.special.ndtr(true / sigma)
    density = torch.exp(-0.5 * (true / sigma) ** 2) / math.sqrt(2 * math.pi)
    slack = 6.5 * (p * (1 - p) / 20000).sqrt() / density * sigma
    clear = decided & (p < 0.999)
    assert clear.sum() > 30
    assert (true - found.radius <= slack)[clear].all()
    assert found.radius.max() <= sigma * 3.4  # Phi^-1(0.001^(1/20000)) = 3.39
    assert all(weight.grad is None for weight in model.parameters())


def test_abstains_where_the_votes_do_not_decide() -> None:
    model = Linear().eval()
    x = _images(1)
    with torch.no_grad():  # move the boundary through the image
        model.b -= model.margin(x)[0]
    found = Smoothing(model, 0.25).certify(x, n0=50, n=2000)
    assert int(found.predicted[0]) == -1
    assert float(found.radius[0]) == 0


def test_result_depends_on_neither_batch_size_nor_company() -> None:
    model, x = Linear().eval(), _images(4)
    whole = Smoothing(model, 0.25, batch_size=1000).certify(x, n0=20, n=300)
    parts = Smoothing(model, 0.25, batch_size=7).certify(x[2:], [2, 3], n0=20, n=300)
    assert torch.equal(whole.votes[2:], parts.votes)
    other = Smoothing(model, 0.25, seed=1).certify(x, n0=20, n=300)
    assert not torch.equal(whole.votes, other.votes)


def test_bound_is_clopper_pearsons_and_holds_as_often_as_promised() -> None:
    for k, n, alpha in ((990, 1000, 0.001), (100, 100, 0.001), (51, 100, 0.05), (0, 10, 0.01)):
        expected = binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
        assert lower_bound(k, n, alpha) == pytest.approx(expected)
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100))
    successes = torch.binomial(
        torch.full((4000,), 50.0), torch.full((4000,), 0.8), generator=torch.Generator().manual_seed(0)
    )
    wrong = sum(lower_bound(int(k), 50, 0.05) > 0.8 for k in successes) / 4000
    assert 0.01 < wrong <= 0.06
    assert certified_radius(0.5, 1.0) == 0
    assert certified_radius(0.8413447460685429, 0.5) == pytest.approx(0.5)
    assert rate_at([True, True, False], [0.0, 0.3, 0.9], 0.0) == 1
    assert rate_at([True, True, False], [0.1, 0.3, 0.9], 0.2) == 1


class Constant(nn.Module):
    """A denoiser that answers with one number and keeps what it saw."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.x, self.labels = x, labels
        return torch.full_like(x, 0.5)


@pytest.mark.parametrize("time_input", ["continuous", "index"])
def test_one_shot_denoising_follows_its_formula(time_input: str) -> None:
    network, sigma = Constant(), 0.25
    denoiser = fp.Denoiser.from_module(network, "eps", time_input, (3, 2, 2))
    model = OneShotClassifier(denoiser, Linear().eval(), sigma)
    noisy = _images(5)
    clean = model.clean(noisy)
    seen = model.denoiser.network
    alpha = 1 / math.sqrt(1 + (2 * sigma) ** 2)  # sigma_t / alpha_t = 2 sigma, Carlini et al. 2022
    torch.testing.assert_close(seen.x, alpha * (2 * noisy - 1))
    torch.testing.assert_close(clean, ((2 * noisy - 1 - 2 * sigma * 0.5 + 1) / 2).clamp(0, 1))
    if time_input == "continuous":
        t = float(seen.labels[0]) / 999
        assert math.exp(-0.1 * t - 9.95 * t * t) == pytest.approx(alpha**2, rel=1e-5)
    else:
        bars = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)
        index = int(seen.labels[0])
        ratio = ((1 - bars) / bars).sqrt()
        assert ratio[index] >= 2 * sigma > ratio[index - 1]


def test_bundled_networks_certify_most_digits() -> None:
    data = load_dataset("digits", "test").subset(6)
    model = OneShotClassifier(fp.load_denoiser("digits"), fp.load_classifier("digits"), 0.25)
    found = Smoothing(model, 0.25).certify(data.images, data.sample_ids, n0=20, n=200)
    assert ((found.predicted == data.labels) & (found.radius > 0.1)).sum() >= 4


def _dataset() -> Dataset:
    model = Linear()
    with torch.no_grad():
        labels = (model.margin(_images(5)) > 0).long()
    return Dataset(_images(5), labels, torch.arange(10, 15), ("no", "yes"), "plane", "test")


def test_file_continues_after_a_kill_without_computing_again(tmp_path: Path) -> None:
    config, path, data = CertifyConfig(0.25, 10, 100), tmp_path / "c.csv", _dataset()
    whole = certify_dataset(Linear().eval(), data, config, tmp_path / "whole.csv")

    class Killed(Exception):
        pass

    def die(record: object, new: bool) -> None:
        if len(read_records(path)[1]) == 2:
            raise Killed

    with pytest.raises(Killed):
        certify_dataset(Linear().eval(), data, config, path, report=die)
    with path.open("a") as file:
        file.write("12,1,1,0.3")  # a row cut off by the kill
    model, news = Linear().eval(), []
    records = certify_dataset(model, data, config, path, report=lambda record, new: news.append(new))
    assert news == [False, False, True, True, True]
    assert model.calls == 6
    assert [replace(r, seconds=0) for r in records] == [replace(r, seconds=0) for r in whole]
    assert read_records(path)[1] == records


def test_another_configuration_is_refused_and_nothing_overwritten(tmp_path: Path) -> None:
    config, path, data = CertifyConfig(0.25, 10, 100), tmp_path / "c.csv", _dataset()
    certify_dataset(Linear().eval(), data, config, path)
    before = path.read_bytes()
    with pytest.raises(ResumeError, match=r"sigma: saved 0\.25, now 0\.5"):
        certify_dataset(Linear().eval(), data, replace(config, sigma=0.5), path)
    with pytest.raises(ResumeError, match="denoiser: saved None, now other"):
        certify_dataset(Linear().eval(), data, config, path, networks={"denoiser": "other"})
    assert path.read_bytes() == before
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("a,b\n1,2\n")
    with pytest.raises(ResumeError, match="not a file of `fastpure certify`"):
        certify_dataset(Linear().eval(), data, config, foreign)
    assert foreign.read_text() == "a,b\n1,2\n"


def test_noise_is_that_of_no_other_domain() -> None:
    """A certificate's draws with an evaluation's seed, ids and numbers: other noise, whatever the images are."""
    image, others = torch.zeros(3, 2, 2), [domain for domain in Domain if domain != Domain.CERTIFICATE]
    ((noisy, _),) = noisy_images(image, 5, range(FIRST_DRAW, FIRST_DRAW + 4), 1.0, 3, 8)
    for domain in others:
        for stream in Stream:
            keys = NoiseKeys.make(3, [5] * 4, list(range(FIRST_DRAW, FIRST_DRAW + 4)), domain)
            assert not bool((noisy == philox_normal(keys, 0, stream, (3, 2, 2))).any())
    assert len(others) == 4


def test_a_file_with_the_noise_of_evaluations_is_not_continued(tmp_path: Path) -> None:
    config, path, data = CertifyConfig(0.25, 10, 100), tmp_path / "c.csv", _dataset()
    certify_dataset(Linear().eval(), data, config, path)
    settings, _ = read_records(path)
    first, rest = path.read_text().split("\n", 1)
    del settings["noise"]
    path.write_text(first.split("{")[0] + json.dumps(settings) + "\n" + rest)
    before = path.read_bytes()
    with pytest.raises(ResumeError, match="noise: saved None, now domain 4, certification's own"):
        certify_dataset(Linear().eval(), data, config, path)
    assert path.read_bytes() == before


def test_command_prints_certified_accuracy_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv"
    words = ["certify", "--n", "3", "--draws0", "5", "--draws", "60", "--out", str(path), "--radii", "0,0.1"]
    output = CliRunner().invoke(app, words).output
    assert "certified accuracy" in output
    records = read_records(path)[1]
    assert len(records) == 3
    right = rate_at([r.correct for r in records], [r.radius for r in records], 0.1)
    assert f"{100 * right / 3:.1f} %" in output
    CliRunner().invoke(app, words)
    assert read_records(path)[1] == records
    refused = CliRunner().invoke(app, [*words, "--sigma", "0.5"])
    assert isinstance(refused.exception, ResumeError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "`sigma` must be"),
        ({"n": 0}, "`n` must be"),
        ({"alpha": 1.0}, "`alpha` must be an error probability"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CertifyConfig(**change)
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    with pytest.raises(ValueError, match="`sigma` must be at most"):
        OneShotClassifier(denoiser, classifier, 1000.0)
    with pytest.raises(ValueError, match="`sigma` must be the model's own noise level"):
        Smoothing(OneShotClassifier(denoiser, classifier, 0.25), 0.5)
