"""The averaged posterior of a diffusion classifier: its estimate through the door, and its certified radius."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.special import ndtri

import fastpure as fp
from fastpure.certify import CertifyConfig, PosteriorSmoothing, Smoothing, certify_posteriors, read_records
from fastpure.certify.posterior import bernstein, posterior_radius
from fastpure.data import Dataset
from fastpure.errors import ResumeError
from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal
from fastpure.kernels.keys import STEP_MAX
from fastpure.purify import door
from tests.golden import relative_error
from tests.purify.gaussians import Gaussians, denoiser, images

SIGMA = 0.1


def classifier(n_levels: int = 4, n_noised: int = 3, **settings) -> fp.NoisedDiffusionClassifier:
    model = fp.DiffusionClassifier(denoiser(), n_levels, (5e-3, 1e2), sigma=SIGMA, **settings)
    return fp.NoisedDiffusionClassifier(model, n_noised)


def test_a_diffusion_classifier_can_be_smoothed_like_any_other():
    """Its own noise is named by the draw of the noisy image, whatever is asked together, and is not that image's."""
    model = fp.DiffusionClassifier(denoiser(dtype=torch.float32), 2, sigma=SIGMA)
    image, seen = images(1, torch.float32)[0], []

    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.training = model, False

        def forward(self, x):
            logits = self.inside(x)
            seen.append((x, logits))
            return logits

    many = Smoothing(Watched(), SIGMA, batch_size=6).counts(image, 3, range(6))
    few = Smoothing(Watched(), SIGMA, batch_size=4).counts(image, 3, range(6))
    assert torch.equal(many, few)
    (noisy, logits), *parts = seen
    assert relative_error(torch.cat([part[1] for part in parts]), logits) < 1e-5
    ids, draws = torch.full((6,), 3), torch.arange(6)
    asked = [model(noisy, ids, draws, domain=domain) for domain in (Domain.DEFENSE, Domain.CERTIFICATE)]
    assert torch.equal(asked[0], logits)
    assert not torch.equal(asked[1], logits), "the noise of the certificate's draws is in the images"


def test_average_of_posteriors_by_hand():
    one, x, ids = classifier(seed=3), images(2), torch.tensor([5, 9])
    with torch.no_grad():
        found = one(x, ids, 7, domain=Domain.ATTACK)
        mean = torch.zeros(2, 3, dtype=torch.float64)
        for j in range(3):
            draw = 21 + j
            keys = NoiseKeys.make(3, ids, draw, Domain.ATTACK)
            # Not the noise that diffuses the image of a purifier before it, which has these keys at step 0.
            noise = philox_normal(keys, STEP_MAX, Stream.CLASSIFIER, x.shape[1:], dtype=x.dtype)
            mean += one.model(x + SIGMA * noise, ids, draw, domain=Domain.ATTACK).softmax(1) / 3
    assert relative_error(found.exp(), mean) < 1e-12
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(one(leaf, draw=0)[:, 0].sum(), leaf)
    h = torch.zeros_like(x)
    h[1, 0, 1, 1] = 1e-6
    with torch.no_grad():
        slope = (one(x + h, draw=0) - one(x - h, draw=0))[1, 0] / 2e-6
    assert abs(float(gradient[1, 0, 1, 1] - slope)) < 1e-6 * max(1.0, abs(float(slope)))


def test_the_door_knows_it():
    model = fp.DiffusionClassifier(denoiser(dtype=torch.float32), 2, sigma=SIGMA)
    one = fp.NoisedDiffusionClassifier(model, 3)
    x, ids = images(2, torch.float32), torch.tensor([4, 1])
    target = door(one, x, ids)
    assert (target.own_noise, target.is_random, target.n_classes, target.network_calls) == ("", True, 3, 18)
    attack = fp.attacks.PGD(norm="L2", eps=0.3, n_iter=2, eot_iter=2)
    found = [attack(one, x, torch.tensor([0, 1]), sample_ids=[4, 1]).x_adv for _ in range(2)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], x)


def test_mean_posterior_is_the_known_one_and_certificates_hold():
    """Nearly exact posteriors: g by a large plain Monte Carlo; no image within the radius has another class."""
    one, network = classifier(n_levels=200, batch_size=8192), Gaussians()
    x = images(8)
    smoothing = PosteriorSmoothing(one, batch_size=20)
    found = smoothing.certify(x, n0=8, n=150, alpha=0.05)
    assert (found.predicted >= 0).sum() >= 2, "few abstain"
    generator = torch.Generator().manual_seed(8)

    def g(image: torch.Tensor) -> torch.Tensor:
        noise = torch.randn((20_000, *image.shape), generator=generator, dtype=torch.float64)
        with torch.no_grad():
            return network.log_density(2 * (image + SIGMA * noise) - 1, 2 * SIGMA).softmax(1).mean(0)

    for i in range(len(x)):
        truth, top = g(x[i]), int(found.predicted[i])
        if top < 0:
            assert found.radius[i] == 0
            continue
        assert found.p_lower[i] <= truth[top] + 0.02
        assert found.p_upper[i] >= truth[torch.arange(3) != top].max() - 0.02
        expected = 0.5 * SIGMA * (ndtri(float(found.p_lower[i])) - ndtri(float(found.p_upper[i])))
        assert float(found.radius[i]) == pytest.approx(expected)
        for y in range(3):  # towards every other class, as far as is certified
            if y != top:
                way = (network.means[y] - network.means[top]).detach().view_as(x[i])
                assert int(g(x[i] + float(found.radius[i]) * way / way.norm()).argmax()) == top


def test_certificates_depend_on_neither_batch_nor_order():
    x = images(3)
    together = PosteriorSmoothing(classifier()).certify(x, [4, 2, 7], n0=4, n=20)
    alone = PosteriorSmoothing(classifier(batch_size=5), batch_size=3).certify(x[1:2], [2], n0=4, n=20)
    assert alone.p_upper[0] == pytest.approx(float(together.p_upper[1]), abs=1e-12)
    assert alone.predicted[0] == together.predicted[1]


def test_a_data_set_is_certified_into_a_file_that_continues(tmp_path: Path):
    def one(**settings) -> fp.NoisedDiffusionClassifier:
        model = fp.DiffusionClassifier(denoiser(dtype=torch.float32), 2, sigma=SIGMA, seed=5, **settings)
        return fp.NoisedDiffusionClassifier(model)

    x, config, path = images(4, torch.float32), CertifyConfig(SIGMA, 4, 60, 0.05, 5), tmp_path / "c.csv"
    data = Dataset(x, torch.tensor([0, 1, 2, 0]), torch.tensor([3, 8, 4, 1]), ("a", "b", "c"), "g", "test")
    whole = certify_posteriors(one(), data, config, tmp_path / "whole.csv")
    expected = PosteriorSmoothing(one()).certify(x, data.sample_ids, 4, 60, 0.05)
    for name in ("predicted", "radius", "p_lower", "p_upper"):
        assert [getattr(record, name) for record in whole] == pytest.approx(getattr(expected, name).tolist())
    lines = (tmp_path / "whole.csv").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + "4,2")  # two whole rows, and one that a kill cut off
    news: list[bool] = []
    again = certify_posteriors(one(), data, config, path, report=lambda record, new: news.append(new))
    assert news == [False, False, True, True]
    assert [replace(r, seconds=0) for r in again] == [replace(r, seconds=0) for r in whole]
    before = path.read_bytes()
    with pytest.raises(ResumeError, match=r"model: saved n_levels=2.*spread='random'"):
        certify_posteriors(one(spread="random"), data, config, path)
    with pytest.raises(ResumeError, match="not a file of"):
        read_records(path)
    for change in ({"sigma": 0.2}, {"seed": 6}):
        with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be the classifier's own"):
            certify_posteriors(one(), data, replace(config, **change), path)
    assert path.read_bytes() == before


def test_bernstein_bound():
    values = torch.tensor([0.2, 0.4, 0.9, 0.5], dtype=torch.float64)
    share = math.log(2 / 0.01)
    expected = math.sqrt(2 * 0.08666666666666667 * share / 4) + 7 * share / 9
    assert float(bernstein(values, 0.01)) == pytest.approx(expected)
    generator = torch.Generator().manual_seed(0)
    many = (torch.rand((200, 4000), generator=generator, dtype=torch.float64) < 0.1).double()
    missed = ((many.mean(0) + bernstein(many, 0.05)) < 0.1).double().mean()
    assert missed <= 0.05


def test_radius():
    assert posterior_radius(0.9, 0.05, 0.5) == pytest.approx(0.25 * (ndtri(0.9) - ndtri(0.05)))
    assert posterior_radius(0.4, 0.4, 0.5) == 0.0
    assert posterior_radius(0.3, 0.5, 0.5) == 0.0
    assert math.isfinite(posterior_radius(1.0, 0.0, 0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.NoisedDiffusionClassifier(denoiser()), "`model` must be a fastpure.DiffusionClassifier"),
        (lambda: fp.NoisedDiffusionClassifier(fp.DiffusionClassifier(denoiser())), "one for noisy images"),
        (lambda: classifier(n_noised=0), "`n_noised`"),
        (lambda: PosteriorSmoothing(classifier().model), "NoisedDiffusionClassifier"),
        (lambda: PosteriorSmoothing(classifier()).certify(images(1), alpha=0.0), "`alpha`"),
        (lambda: PosteriorSmoothing(classifier()).certify(images(1), n=1), "`n`"),
        (lambda: PosteriorSmoothing(classifier()).certify(images(2), [1]), "one id per image"),
        (lambda: PosteriorSmoothing(classifier()).certify(images(1) + 1), r"in \[0, 1\]"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
