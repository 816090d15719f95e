"""Every bundled network loads, is as small as promised, is described, and does what its README says on real images."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastpure as fp
from fastpure.data import load_dataset
from fastpure.train import score_classifier, score_denoiser, score_energy
from fastpure.zoo import CLASSIFIERS, DENOISERS, ENERGIES, weights_path

MEGABYTE = 2**20
PACK = Path(__file__).parent.parent / "data" / "cifar10_64.npz"
README = weights_path("denoiser", "digits").parent / "README.md"


@pytest.fixture(scope="module")
def images():
    """64 of CIFAR-10's test images, which nothing was trained on."""
    return load_dataset("cifar10", "test", path=PACK)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers(name):
    path, denoiser = weights_path("denoiser", name), fp.load_denoiser(name)
    assert path.stat().st_size < 6 * MEGABYTE
    assert path.name in README.read_text()
    assert denoiser.image_shape == ((1, 8, 8) if name.startswith("digits") else (3, 32, 32))
    assert not any(weight.requires_grad for weight in denoiser.parameters())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name):
    path = weights_path("classifier", name)
    assert path.stat().st_size < 3 * MEGABYTE
    assert path.name in README.read_text()
    assert not fp.load_classifier(name).training


def test_no_file_is_forgotten():
    """Whatever lies in the folder has a name under which it loads."""
    known = {*DENOISERS.values(), *CLASSIFIERS.values(), *ENERGIES.values()}
    assert {path.name for path in README.parent.glob("*.safetensors")} == known


def test_the_cifar10_classifier_classifies(images):
    """87 % of all test images; 59 of these 64. An accuracy of 86 % falls below 50 once in 90 such draws."""
    score = score_classifier(fp.load_classifier("cifar10-small"), images)
    assert score.accuracy >= 50 / 64


def test_the_cifar10_denoiser_removes_noise(images):
    """The README's PSNR over 512 images, with room for these 64 being another sample."""
    scores = score_denoiser(fp.load_denoiser("cifar10-small"), images, (0.05, 0.1, 0.2))
    for score, published in zip(scores, (30.0, 26.3, 22.7), strict=True):
        assert score.psnr == pytest.approx(published, abs=0.7)
        assert score.noise_mse < 0.2


def test_purification_takes_a_simple_attack_away(images):
    """Images that fool the bare classifier; a purifier that ruined images or did nothing would not mend them."""
    classifier = fp.load_classifier("cifar10-small")
    some = images.select(range(24))
    attack = fp.attacks.PGD(norm="Linf", eps=8 / 255, n_iter=5, eot_iter=1, eval_draws=1)
    result = attack(classifier, some.images, some.labels, sample_ids=some.sample_ids)
    assert result.robust_accuracy.estimate < 0.2
    method = fp.methods.diffpure(t=0.1, dt=0.025, solver="exponential")
    purifier = fp.Purifier(fp.load_denoiser("cifar10-small"), method, seed=0)
    right = classifier(purifier(result.x_adv, sample_ids=some.sample_ids)).argmax(1) == some.labels
    assert right.float().mean() > 0.35


@pytest.mark.parametrize("name", ENERGIES)
def test_energies(name):
    path, energy = weights_path("energy", name), fp.load_energy(name)
    assert path.stat().st_size <= 30 * 1000
    assert path.name in README.read_text()
    assert not energy.training
    assert not any(weight.requires_grad for weight in energy.parameters())


def test_the_digits_energy_purifies():
    """Images that fool the bare classifier; of all 500 the README's counts, with room for these being 60 of them."""
    classifier, data = fp.load_classifier("digits"), load_dataset("digits", "test").subset(60, data_seed=0)
    attack = fp.attacks.PGD(norm="Linf", eps=0.2, n_iter=10, eot_iter=1, eval_draws=1)
    result = attack(classifier, data.images, data.labels, sample_ids=data.sample_ids)
    assert result.robust_accuracy.estimate < 0.1
    method = fp.methods.ebm_langevin(fp.load_energy("digits"), n_steps=60, tau=0.08, clip_output=True)
    purifier = fp.Purifier(fp.load_denoiser("digits"), method, seed=0)
    for images, low in ((data.images, 0.65), (result.x_adv, 0.35)):
        purified = purifier(images, sample_ids=data.sample_ids)
        assert (classifier(purified).argmax(1) == data.labels).float().mean() > low


def test_the_digits_energy_predicts_noise():
    score = score_energy(fp.load_energy("digits"), load_dataset("digits", "test"), 0.25)
    assert score.noise_mse < 0.5
    assert score.higher > 0
