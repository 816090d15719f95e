"""Mistakes of somebody who comes from another library: each is told in a sentence that ends with the remedy."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.certify import OneShotClassifier, Smoothing
from fastpure.data import load_dataset


@pytest.fixture(scope="module")
def defense() -> fp.Defense:
    purifier = fp.Purifier(fp.load_denoiser("digits"), fp.methods.diffpure(t=0.1, dt=0.05))
    return fp.Defense(purifier, fp.load_classifier("digits"))


@pytest.fixture(scope="module")
def attack() -> fp.attacks.PGD:
    return fp.attacks.PGD(eps=0.1, n_iter=1, eot_iter=1, eval_draws=1)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("digits", "test").subset(2)
    return data.images, data.labels


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: (255 * x).to(torch.uint8), TypeError, r"got torch.uint8 .*Use x.float\(\), and divide 8-bit images"),
        (lambda x: x.double(), TypeError, r"got torch.float64 .*Use x.float\(\)$"),
        (lambda x: x.numpy(), TypeError, r"got ndarray. Use torch.from_numpy\(x\).float\(\)$"),
        (lambda x: x[0], TypeError, r"Add the batch dimension with x\[None\]"),
        (lambda x: x.permute(0, 2, 3, 1), ValueError, r"got .*8, 8, 1\]. Use x.permute\(0, 3, 1, 2\)"),
    ],
)  # fmt: skip
def test_images_of_other_types_and_orders(defense, attack, digits, wrong, error, message):
    x, y = digits
    with pytest.raises(error, match=message):
        attack(defense, wrong(x), y)
    with pytest.raises((TypeError, ValueError), match=message.split(".*")[-1].split("got ndarray. ")[-1]):
        defense(wrong(x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda y: nn.functional.one_hot(y, 10), r"got \[2, 10\]. One column per class: y.argmax\(1\) are the classes"),
        (lambda y: nn.functional.one_hot(y, 10).float(), r"One column per class: y.argmax\(1\)"),
        (lambda y: y.float(), r"got torch.float32. Use y.long\(\)"),
        (lambda y: y.tolist(), r"got list. Use torch.as_tensor\(y\)"),
        (lambda y: y.numpy(), r"got ndarray. Use torch.as_tensor\(y\)"),
    ],
)  # fmt: skip
def test_labels_of_other_kinds(defense, attack, digits, wrong, message):
    x, y = digits
    with pytest.raises((TypeError, ValueError), match=message):
        attack(defense, x, wrong(y))


def test_parts_in_the_wrong_order(defense, attack, digits):
    purifier, classifier = defense.purifier, defense.classifier
    with pytest.raises(TypeError, match=r"got ResNet. Write fp.Defense\(purifier, classifier\)"):
        fp.Defense(classifier, purifier)
    with pytest.raises(
        TypeError, match=r"got Denoiser. Give it a method first: fp.Purifier\(denoiser, method\)"
    ):
        fp.Defense(purifier.denoiser, classifier)
    with pytest.raises(TypeError, match=r"got Denoiser. Put it before a classifier: fp.Defense\(fp.Purifier"):
        attack(purifier.denoiser, *digits)
    with pytest.raises(TypeError, match=r"got Purifier. Put it before a classifier: fp.Defense\(purifier, "):
        fp.evaluate(purifier, digits, attack, progress=False)


def test_an_attack_takes_no_model_when_it_is_made(defense):
    with pytest.raises(
        TypeError, match=r"takes settings, got Defense. Call what PGD\(...\) returns: PGD\(...\)\(defense"
    ):
        fp.attacks.PGD(defense, eps=0.1)


def test_a_class_or_function_where_what_it_makes_is_meant(defense, digits):
    with pytest.raises(TypeError, match=r"got the class PGD. Make one: PGD\(eps=8/255\)"):
        fp.evaluate(defense, digits, fp.attacks.PGD, progress=False)
    with pytest.raises(TypeError, match=r"got .*unction. Use for example fp.protocols.fresh\(10\)"):
        fp.evaluate(defense, digits, protocol=fp.protocols.fresh, progress=False)


def test_a_radius_as_text():
    with pytest.raises(TypeError, match=r"got str .8/255.\. Write 8/255 without quotes"):
        fp.attacks.PGD(eps="8/255")


class Probabilities(nn.Module):
    def __init__(self, network: nn.Module, log: bool = False) -> None:
        super().__init__()
        self.network, self.log = network, log

    def forward(self, x: Tensor) -> Tensor:
        p = self.network(x).softmax(1)
        return p.log() if self.log else p


class Decisions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.flatten(1).argmax(1) % 10, 10).float()


@pytest.mark.parametrize("bare", [True, False])
def test_probabilities_instead_of_logits_are_noticed(defense, attack, digits, bare):
    def target(module: nn.Module) -> nn.Module:
        return module.eval() if bare else fp.Defense(defense.purifier, module.eval())

    argument = "defense" if bare else "classifier"
    with pytest.warns(
        UserWarning, match=f"`{argument}` seems to answer with probabilities.*Leave out the softmax"
    ):
        attack(target(Probabilities(defense.classifier)), *digits)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attack(target(Probabilities(defense.classifier, log=True)), *digits)
        attack(target(defense.classifier), *digits)
        fp.evaluate(
            target(Decisions()), digits, None, progress=False
        )  # what asks for decisions alone may have them


def test_a_normalisation_of_other_channels_or_of_0_to_255():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval()
    mine = fp.Normalised(network, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    with pytest.raises(
        ValueError, match=r"`x` must be images of 3 channels, as mean and std are, got \[2, 1, 8, 8\]"
    ):
        mine(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"of images in \[0, 1\].*125.3.*to be divided by 255"):
        fp.Normalised(network, mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))


def test_certificates_of_a_defence_and_in_grey_levels(defense):
    with pytest.raises(
        TypeError, match=r"got a Defense, .*Use .*OneShotClassifier\(denoiser, classifier, sigma\)"
    ):
        Smoothing(defense, sigma=0.25)
    with pytest.raises(
        ValueError, match=r"`sigma` must be at most 5, got 64.0. Images are in \[0, 1\]: write 64/255"
    ):
        OneShotClassifier(defense.purifier.denoiser, defense.classifier, 64.0)
    with pytest.raises(ValueError, match="`sigma` must be at most 5"):
        Smoothing(defense.classifier, sigma=64.0)


def test_sources_of_networks():
    with pytest.raises(fp.errors.CheckpointError, match="Did you mean hf:google/ddpm-cifar10-32"):
        fp.load_denoiser("google/ddpm-cifar10-32")
    with pytest.raises(fp.errors.CheckpointError, match="Did you mean hf:timm/resnet50"):
        fp.load_classifier("timm/resnet50")
    with pytest.raises(fp.errors.CheckpointError, match=", torchvision:NAME, timm:NAME or robustbench:NAME"):
        fp.load_classifier("resnet50")


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        (fp, "Purify", "Purifier"),
        (fp, "load_model", "load_classifier (load_model in RobustBench)"),
        (fp.attacks, "APGD", "APGDCE (APGD in torchattacks"),
        (fp.attacks, "EOTPGD", "PGD (EOTPGD in torchattacks)"),
        (fp.attacks, "FGSM", "PGD (FGSM in torchattacks and foolbox)"),
        (fp.attacks, "Autoattack", "AutoAttack"),
        (fp.methods, "DiffPure", "diffpure"),
        (fp.methods, "ode", "diffpure_ode (ode in DiffPure)"),
    ],
)  # fmt: skip
def test_attributes_say_what_was_meant(module, name, meant):
    with pytest.raises(AttributeError) as stop:
        getattr(module, name)
    assert str(stop.value).startswith(
        f"module {module.__name__!r} has no attribute {name!r}. Did you mean {meant}"
    )
    assert not hasattr(module, "_no_such_thing")


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: fp.attacks.from_settings("aa"), r"Did you mean autoattack \(aa in"),
        (lambda: fp.attacks.from_settings("autopgd"), r"Did you mean apgd-ce \(autopgd in"),
        (lambda: fp.methods.diffpure(t=0.1, steps=5), r"Did you mean dt \(steps"),
        (lambda: fp.methods.diffpure(t=0.1, n_steps=5), r"Did you mean dt \(n_steps"),
        (lambda: fp.methods.diffpure(t=0.1, solver="exp"), "Did you mean exponential"),
        (lambda: fp.Purifier(fp.load_denoiser("digits"), fp.methods.diffpure(), precision="float16"),
         r"Did you mean fp16 \(float16 in PyTorch\)"),
    ],
)  # fmt: skip
def test_words_of_other_places(call, meant):
    with pytest.raises((ValueError, TypeError), match=meant):
        call()
