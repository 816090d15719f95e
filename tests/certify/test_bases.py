"""Random base classifiers: DensePure against a posterior, DiffSmooth against its sum, and what both promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fastpure as fp
from fastpure.certify import (
    BASES,
    CertifyConfig,
    DensePureClassifier,
    DiffSmoothClassifier,
    OneShotClassifier,
    SmoothedBase,
    Smoothing,
    certify_dataset,
    read_records,
)
from fastpure.certify.densepure import posterior_steps
from fastpure.cli.main import app
from fastpure.data import Dataset, load_dataset
from fastpure.errors import NonFiniteError, ResumeError
from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal
from fastpure.schedule import VP
from tests.reverse.toys import ToyNet

SIGMA = 0.25


class TwoImages(nn.Module):
    """The exact denoiser where every image is all c or all -c in [-1, 1], equally often."""

    c = 0.4

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        t = labels / 999
        power = torch.exp(-0.1 * t - 9.95 * t**2).view(-1, 1, 1, 1)
        a, s = power.sqrt(), (1 - power).sqrt()
        mean = self.c * torch.tanh(a * self.c * x.sum((1, 2, 3), keepdim=True) / s**2)
        return (x - a * mean) / s


class Bright(nn.Module):
    """Class 1 for images brighter than one half; its logits are steep."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(5.0))

    def forward(self, u: Tensor) -> Tensor:
        margin = self.w * (u - 0.5).sum((1, 2, 3))
        return torch.stack([-margin, margin], 1)


def _networks() -> tuple[fp.Denoiser, nn.Module]:
    return fp.Denoiser.from_module(TwoImages(), image_shape=(1, 2, 2)).eval(), Bright().eval()


def _keys(count: int, draw: int = 0) -> NoiseKeys:
    return NoiseKeys.make(7, range(count), draw, Domain.EVALUATION)


def _noisy(count: int) -> Tensor:
    return 0.5 + 0.4 * torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def test_runs_of_densepure_sample_the_posterior() -> None:
    """P(all c | noisy u) = 1 / (1 + exp(-2 c sum(2 u - 1) / (2 sigma)^2)), if the denoiser is exact and steps many."""
    copies, runs, noisy = 500, 4, 0.5 + 0.25 * (_noisy(6) - 0.5)
    model = DensePureClassifier(*_networks(), SIGMA, runs=runs, steps=40)
    keys = NoiseKeys.make(7, list(range(6)) * copies, sorted(list(range(copies)) * 6), Domain.EVALUATION)
    votes = model(noisy.repeat(copies, 1, 1, 1), keys)
    assert torch.equal(votes.sum(1), torch.full((6 * copies,), float(runs)))
    expected = torch.sigmoid(2 * TwoImages.c * (2 * noisy - 1).sum((1, 2, 3)) / (2 * SIGMA) ** 2)
    assert ((expected > 0.1) & (expected < 0.9)).sum() >= 4
    found = votes.view(copies, 6, 2).sum(0)[:, 1] / (copies * runs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_one_step_of_densepure_is_one_shot_denoising() -> None:
    noisy = _noisy(9)
    one, many = OneShotClassifier(*_networks(), SIGMA), DensePureClassifier(*_networks(), SIGMA, 3, 1)
    for version in many.versions(noisy, _keys(9)):
        torch.testing.assert_close(version, one.clean(noisy), rtol=0, atol=1e-6)
    assert torch.equal(many(noisy), 3 * nn.functional.one_hot(one(noisy).argmax(1), 2).float())


def test_a_consistency_function_makes_one_step_and_no_posterior_steps() -> None:
    network = fp.Denoiser.from_module(ToyNet().eval(), "consistency", "sigma", image_shape=(2, 8, 8))
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 3)).eval()
    one = OneShotClassifier(network, classifier, 0.25)
    noisy = torch.rand(2, 2, 8, 8)
    with torch.no_grad():
        expected = (network.network(2 * noisy - 1, torch.full((2,), 0.5)) + 1) / 2
        assert torch.allclose(one.clean(noisy), expected.clamp(0, 1), atol=1e-6)
    with pytest.raises(ValueError, match="one that predicts a mean, got a consistency function"):
        DensePureClassifier(network, classifier, 0.25)


def test_steps_of_densepure_end_at_the_image_and_begin_at_the_smoothing_noise() -> None:
    table, t = posterior_steps(VP().time_of(-torch.tensor(2 * SIGMA).log().item()), 4), VP()
    assert table.rows[0].sigma / table.rows[0].alpha == pytest.approx(2 * SIGMA)
    assert table.rows[-1].d == 0
    for now, after in zip(table.rows, [*table.rows[1:], None], strict=True):
        alpha, sigma = (after.alpha, after.sigma) if after else (1.0, 0.0)
        # A state whose noise is all predicted goes to the next level: signal alpha, variance sigma^2.
        assert now.a * now.alpha == pytest.approx(alpha, rel=1e-12)
        assert (now.a * now.sigma + now.b) ** 2 + now.d**2 == pytest.approx(sigma**2, abs=1e-12)
        assert t.alpha(now.t) == now.alpha


@pytest.mark.parametrize("combine", ["softmax", "majority", "logits"])
def test_diffsmooth_adds_up_the_classifier_around_the_estimate(combine: str) -> None:
    denoiser, classifier = _networks()
    model = DiffSmoothClassifier(denoiser, classifier, SIGMA, copies=3, local_sigma=0.2, combine=combine)
    noisy, clean = _noisy(5), OneShotClassifier(denoiser, classifier, SIGMA).clean(_noisy(5))
    total = torch.zeros(5, 2)
    for copy in range(3):
        keys = NoiseKeys.make(7, range(5), 4 * 3 + copy, Domain.EVALUATION)
        logits = classifier(clean + 0.2 * philox_normal(keys, 0, Stream.REVERSE, (1, 2, 2)))
        if combine == "majority":
            total[torch.arange(5), logits.argmax(1)] += 1
        else:
            total += logits.softmax(1) if combine == "softmax" else logits
    torch.testing.assert_close(model(noisy, _keys(5, draw=4)), total.detach())


def _sums(count: int) -> Tensor:
    """Images whose distance from the plane of equal brightness is known."""
    return 0.5 + torch.linspace(-0.35, 0.35, count).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


BASE = {
    "oneshot": lambda: OneShotClassifier(*_networks(), SIGMA),
    "densepure": lambda: DensePureClassifier(*_networks(), SIGMA, runs=5, steps=3),
    "diffsmooth": lambda: DiffSmoothClassifier(*_networks(), SIGMA, copies=3, local_sigma=0.2),
}


def test_every_base_is_tried_here() -> None:
    assert set(BASE) == set(BASES)
    assert all(isinstance(BASE[name](), kind) for name, kind in BASES.items())


@pytest.mark.parametrize("name", BASE)
def test_certificates_of_a_random_base_stay_below_the_true_radius(name: str) -> None:
    """Everything here is symmetric about brightness one half, so that plane is where the smoothed class changes."""
    x = _sums(12)
    true = (x - 0.5).flatten(1).norm(dim=1).double()
    found = Smoothing(BASE[name](), SIGMA, batch_size=2000).certify(x, n0=50, n=1500)
    decided = found.predicted >= 0
    assert decided.sum() >= 8
    assert torch.equal(found.predicted[decided], (x.sum((1, 2, 3)) > 2).long()[decided])
    assert (found.radius <= true).all()
    # Not for being small: further away than sigma all of them certify at least a half of what is true.
    far = true > 0.9 * SIGMA
    assert far.sum() >= 8
    assert (found.radius > 0.5 * true)[far].all()


@pytest.mark.parametrize("name", BASE)
def test_votes_depend_on_neither_batch_size_nor_company(name: str) -> None:
    x = _sums(4)
    whole = Smoothing(BASE[name](), SIGMA, batch_size=1000).certify(x, n0=20, n=300)
    parts = Smoothing(BASE[name](), SIGMA, batch_size=7).certify(x[2:], [2, 3], n0=20, n=300)
    assert torch.equal(whole.votes[2:], parts.votes)
    assert not torch.equal(whole.votes, Smoothing(BASE[name](), SIGMA, seed=1).certify(x, n0=20, n=300).votes)


@pytest.mark.parametrize("name", ["densepure", "diffsmooth"])
def test_every_draw_and_version_has_noise_of_its_own(name: str) -> None:
    model, noisy = BASE[name](), _noisy(1).expand(2, 1, 2, 2)
    keys = NoiseKeys.make(7, [3, 3], [0, 1], Domain.EVALUATION)
    versions = torch.stack(list(model.versions(noisy, keys))).flatten(0, 1).flatten(1)
    assert model.n_versions == len(versions) // 2
    if name == "densepure":  # in the middle of the process; its ends are clamped to one of two images
        versions = torch.stack(
            [
                philox_normal(model.version_keys(keys, k), 0, Stream.REVERSE, (4, 1, 1)).flatten(1)
                for k in range(model.n_versions)
            ]
        ).flatten(0, 1)
    smoothing = philox_normal(keys, 0, Stream.FORWARD, (4, 1, 1)).flatten(1)
    assert len(torch.unique(torch.cat([versions, smoothing]), dim=0)) == len(versions) + 2


def _dataset() -> Dataset:
    x = _sums(4)
    return Dataset(x, (x.sum((1, 2, 3)) > 2).long(), torch.arange(10, 14), ("dark", "bright"), "sums", "test")


@pytest.mark.parametrize("name", ["densepure", "diffsmooth"])
def test_file_continues_and_is_one_of_this_base_alone(tmp_path: Path, name: str) -> None:
    config, data = CertifyConfig(SIGMA, 10, 60), _dataset()
    whole = certify_dataset(BASE[name](), data, config, tmp_path / "whole.csv")
    path = tmp_path / "cut.csv"
    rows = (tmp_path / "whole.csv").read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:4]) + "12,1")
    news: list[bool] = []
    records = certify_dataset(
        BASE[name](), data, config, path, report=lambda record, new: news.append(new), batch_size=13
    )
    assert news == [False, False, True, True]
    assert [replace(r, seconds=0) for r in records] == [replace(r, seconds=0) for r in whole]
    assert read_records(path)[0]["method"] == name
    before = path.read_bytes()
    others = {
        "densepure": DensePureClassifier(*_networks(), SIGMA, 5, 4),
        "diffsmooth": DiffSmoothClassifier(*_networks(), SIGMA, copies=3, local_sigma=0.3),
    }
    for other in (others[name], OneShotClassifier(*_networks(), SIGMA)):
        with pytest.raises(ResumeError, match=r"belongs to another certification.*saved"):
            certify_dataset(other, data, config, path)
    assert path.read_bytes() == before


def test_files_of_one_shot_denoising_name_no_method(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    certify_dataset(BASE["oneshot"](), _dataset(), CertifyConfig(SIGMA, 5, 20), path)
    assert set(read_records(path)[0]) == {"sigma", "n0", "n", "alpha", "seed", "data", "noise"}


def test_command_says_what_it_costs_and_keeps_methods_apart(tmp_path: Path) -> None:
    words = ["certify", "--n", "1", "--draws0", "5", "--draws", "20", "--radii", "0", "--method", "densepure"]
    words += ["--runs", "3", "--steps", "2", "--out", str(tmp_path / "d.csv")]
    output = CliRunner().invoke(app, words).output
    assert "25 noisy images (150 through the denoiser, 75 through the classifier)" in output
    assert read_records(tmp_path / "d.csv")[0]["steps"] == 2
    refused = CliRunner().invoke(app, [*words, "--copies", "3"])
    assert "`--copies` must be left out: densepure takes runs, steps, got 3" in str(refused.exception)
    refused = CliRunner().invoke(app, [*words[:-2], "--method", "dense"])
    assert "`--method` must be one of 'oneshot', 'densepure', 'diffsmooth', 'nrdc'" in str(refused.exception)


@pytest.mark.slow
def test_bundled_networks_certify_digits_by_every_base() -> None:
    data, few = load_dataset("digits", "test").subset(2), {"densepure": {"runs": 2, "steps": 2}}
    for name, kind in BASES.items():
        networks = fp.load_denoiser("digits"), fp.load_classifier("digits")
        model = kind(*networks, SIGMA, **few.get(name, {}))
        found = Smoothing(model, SIGMA).certify(data.images, data.sample_ids, n0=5, n=40)
        assert ((found.predicted == data.labels) & (found.radius > 0.1)).sum() >= 1, name


class Broken(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return u.flatten(1)[:, :2] * torch.nan


class Vote(SmoothedBase):
    """Somebody's own."""

    def forward(self, noisy: Tensor, keys: NoiseKeys | None = None) -> Tensor:
        return torch.stack([torch.zeros(len(noisy)), keys.draws % 4 - 0.5], 1)


def test_a_base_of_one_s_own_is_told_who_asks() -> None:
    found = Smoothing(Vote().eval(), SIGMA).certify(_sums(1), n0=8, n=400)
    assert (int(found.predicted[0]), int(found.votes[0])) == (1, 300)


def test_mistakes_are_named() -> None:
    denoiser, classifier = _networks()
    for name in ("densepure", "diffsmooth"):
        model = BASES[name](denoiser, Broken().eval(), SIGMA)
        with pytest.raises(NonFiniteError, match="the classifier Broken answered NaN"):
            Smoothing(model, SIGMA).certify(_sums(1), n0=4, n=4)
    for kind, change in (
        (DensePureClassifier, {"runs": 0}),
        (DensePureClassifier, {"steps": 0}),
        (DiffSmoothClassifier, {"copies": 0}),
        (DiffSmoothClassifier, {"local_sigma": 0.0}),
        (DiffSmoothClassifier, {"combine": "mean"}),
    ):
        with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be"):
            kind(denoiser, classifier, SIGMA, **change)
    with pytest.raises(
        ValueError, match=r"`n` must be at most .* draws in all, each of which takes 5 numbers"
    ):
        Smoothing(BASE["densepure"](), SIGMA).certify(_sums(1), n=10**9)
    with pytest.raises(ValueError, match="`sigma` must be the model's own noise level"):
        Smoothing(BASE["diffsmooth"](), 0.5)
