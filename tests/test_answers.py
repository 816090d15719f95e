"""Every answer that decides something is looked at: NaN is never class 0, nor a score below a threshold.

The error names the network that answered it and the samples.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.anomaly import AnomalyDetector
from fastpure.attacks import ATTACKS, MODES
from fastpure.certify import Smoothing
from fastpure.data import Dataset
from fastpure.errors import NonFiniteError
from fastpure.evaluate import GaussianNoise
from fastpure.nets import Denoiser
from fastpure.purify import look_through
from fastpure.report.pictures import bare_classes
from fastpure.train.measure import score_classifier, score_denoiser
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense

IDS = [11, 12, 13]
MARK = 0.999
"""Brightness of a corner at which the networks here break."""


def marked(x: Tensor) -> Tensor:
    return x[:, 0, 0, 0] > MARK


class BreaksOnMarked(nn.Module):
    """`Pixels`, NaN for images whose corner is white: sample 12 of `batch`."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.inner = Pixels(classes)
        self.training = False

    def forward(self, u: Tensor) -> Tensor:
        return self.inner(u) * torch.where(marked(u)[:, None], torch.nan, 1.0)


def batch() -> Tensor:
    x = images(3) * 0.9
    x[1, 0, 0, 0] = 1.0
    return x


WHO = "classifier BreaksOnMarked answered NaN or Inf for sample id 12"


def test_predict_raises_and_a_plain_call_returns_what_was_answered():
    defense = fp.Defense(mixture_defense(Pixels()).purifier, Always().eval())
    with pytest.raises(
        NonFiniteError, match="classifier Always answered NaN or Inf for sample id 11, 12, 13"
    ):
        defense.predict(batch(), IDS)
    assert bool(defense(batch(), IDS).isnan().all())
    assert mixture_defense(Pixels()).predict(batch(), IDS).shape == (3,)


class Always(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return u.flatten(1)[:, :5] * torch.nan


@pytest.mark.parametrize(
    "name", sorted(set(ATTACKS) - {"low-frequency", "diffattack", "diffhammer", "dw-pgd"})
)
def test_every_attack_raises(name):
    if name in ("fab", "square"):
        pytest.importorskip("pyautoattack")
    given = {"square": {"n_queries": 20}, "rays": {"n_queries": 20}, "adaptive": {"budget": 20.0}}
    attack = fp.attacks.from_settings(name, **given.get(name, {"n_iter": 2}))
    who = WHO if name != "rays" else WHO.replace("12", "11, 12, 13")  # its first ray makes all corners white
    with pytest.raises(NonFiniteError, match=who):
        attack(BreaksOnMarked(), batch(), torch.zeros(3).long(), sample_ids=IDS)


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"adjoint", "detached", "unguided"}))
def test_every_gradient_mode_raises(mode):
    settings = {"surrogate_steps": 1} if mode == "surrogate" else {}
    attack = fp.attacks.PGD(n_iter=1, eot_iter=1, random_start=False, gradient=mode, **settings)
    defense = fp.Defense(mixture_defense(Pixels()).purifier, Second(Pixels()))
    with pytest.raises(NonFiniteError, match=r"classifier Second answered NaN or Inf for sample id 1[123]"):
        attack(defense, batch(), torch.zeros(3).long(), sample_ids=IDS)


class Second(nn.Module):
    """Fine while it is asked about one image, as at the door."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.training = inner, False

    def forward(self, u: Tensor) -> Tensor:
        return self.inner(u) * (torch.nan if len(u) > 1 else 1.0)


def test_a_gradient_that_is_nan_is_not_followed():
    class Root(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return Pixels()(u) + (u - u.detach()).abs().sqrt().flatten(1)[:, :5]

    with pytest.raises(
        NonFiniteError, match="the gradient of the attack's loss answered NaN or Inf for sample id 11"
    ):
        fp.attacks.PGD(n_iter=2)(Root().eval(), batch(), torch.zeros(3).long(), sample_ids=IDS)


def test_controls_and_evaluations_raise():
    data = Dataset(batch(), torch.zeros(3).long(), torch.tensor(IDS), tuple("abcde"), "toy", "test")
    for attack in (None, GaussianNoise(std=1e-6), fp.attacks.PGD(n_iter=1)):
        with pytest.raises(NonFiniteError, match=WHO):
            fp.evaluate(BreaksOnMarked(), data, attack, progress=False)


def test_pictures_of_a_report_raise():
    target = look_through(fp.Defense(mixture_defense(Pixels()).purifier, BreaksOnMarked()))
    with pytest.raises(NonFiniteError, match=WHO):
        bare_classes(target, batch().numpy(), torch.tensor(IDS))


def test_certificates_raise():
    with pytest.raises(NonFiniteError, match="classifier Always answered NaN or Inf for sample id 11"):
        Smoothing(Always().eval(), sigma=0.25).certify(batch(), IDS, n0=10, n=20)


class BrokenDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(1)))
        self.training = False

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.weight * x * torch.nan


def test_anomaly_scores_raise():
    detector = AnomalyDetector(Denoiser.from_module(BrokenDenoiser(), image_shape=SHAPE))
    with pytest.raises(
        NonFiniteError, match="denoiser BrokenDenoiser answered NaN or Inf for sample id 11, 12, 13"
    ):
        detector.fit(batch(), IDS)


def test_scores_of_trained_networks_raise():
    data = Dataset(batch(), torch.zeros(3).long(), torch.tensor(IDS), tuple("abcde"), "toy", "test")
    network = BreaksOnMarked()
    network.register_parameter("weight", nn.Parameter(torch.ones(1)))
    with pytest.raises(NonFiniteError, match=WHO):
        score_classifier(network, data)
    with pytest.raises(NonFiniteError, match="denoiser BrokenDenoiser answered NaN or Inf for sample id 11"):
        score_denoiser(BrokenDenoiser(), data)


class Mixture(nn.Module):
    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return 0.1 * x


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("label", ["step", "input"])
def test_a_guidance_is_blamed_for_its_own_nan(gradient, label):
    guide = BreaksOnMarked()
    denoiser = Denoiser.from_module(Mixture().eval(), image_shape=SHAPE)
    purifier = fp.Purifier(denoiser, fp.methods.coup(guide, t=0.01, dt=0.005, label=label))
    x = batch().requires_grad_(gradient)
    still = fp.RecordedNoise(steps=torch.zeros(2, 3, *SHAPE))
    expected = (
        r"step 0 \(t = 0.01\) for sample id 12: the guidance ClassifierConfidence \(BreaksOnMarked\) answered"
    )
    with pytest.raises(NonFiniteError, match=expected):
        purifier(x, IDS, noise=still)
    with pytest.raises(NonFiniteError, match="the guidance ClassifierConfidence"):
        purifier.trajectory(x, IDS, noise=still)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_denoiser_is_blamed_for_its_own(gradient):
    purifier = fp.Purifier(
        Denoiser.from_module(BrokenDenoiser(), image_shape=SHAPE), fp.methods.coup(Pixels())
    )
    with pytest.raises(
        NonFiniteError, match=r"step 0 .*: the denoiser BrokenDenoiser answered it, though its input"
    ):
        purifier(batch().requires_grad_(gradient), IDS)


def test_a_guided_procedure_names_the_guidance_too():
    denoiser = Denoiser.from_module(Mixture().eval(), image_shape=SHAPE)
    method = fp.methods.likelihood_max(classifier=BreaksOnMarked(), n_iter=2, confidence=1.0)
    with pytest.raises(
        NonFiniteError, match=r"for sample id 12: the guidance \w+ \(BreaksOnMarked\) answered"
    ):
        fp.Purifier(denoiser, method)(batch(), IDS)


def test_a_classifiers_nan_gradient_is_not_the_purifications():
    defense = mixture_defense(Pixels())
    x = batch().requires_grad_(True)
    logits = defense.classify(defense.purify(x, IDS, 0))
    loss = (logits.sum(1) * torch.tensor([1.0, torch.nan, 1.0])).sum()
    with pytest.raises(
        NonFiniteError, match=r"what comes after the purification .* NaN or Inf for sample id 12"
    ):
        loss.backward()
