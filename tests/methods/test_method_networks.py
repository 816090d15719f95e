"""What methods ask of the networks and numbers they are given, and the errors that name what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.classifiers import CONFIGS, FeatureHead, ResNet
from fastpure.nets import Denoiser
from tests.methods.small import images, purifier
from tests.reverse.toys import SHAPE, ToyNet, toy_classifier


def test_a_denoiser_of_another_schedule_is_refused():
    toy = ToyNet().eval()
    cosine = Denoiser.from_module(toy, time_input="index", image_shape=SHAPE, schedule="cosine")
    linear = Denoiser.from_module(toy, time_input="index", image_shape=SHAPE)
    with pytest.raises(ValueError, match=r"trained on the linear schedule for adbm.*cosine"):
        fp.Purifier(cosine, fp.methods.adbm())
    with pytest.raises(ValueError, match=r"trained on the cosine schedule for one_shot.*linear"):
        fp.Purifier(linear, fp.methods.one_shot(schedule="cosine"))
    fp.Purifier(cosine, fp.methods.one_shot(schedule="cosine"))(images(1).float())
    told_sigma = Denoiser.from_module(toy, "x0", "sigma", SHAPE)
    for method in (fp.methods.one_shot(schedule="cosine"), fp.methods.adbm()):
        fp.Purifier(told_sigma, method)(images(1).float())
    with pytest.raises(ValueError, match="`schedule` must be one of 'linear', 'cosine'"):
        Denoiser.from_module(toy, image_shape=SHAPE, schedule="quadratic")


class Small(nn.Module):
    def __init__(self, classes=4, size=128):
        super().__init__()
        self.body, self.fc = nn.Flatten(), nn.Linear(size, classes)

    def forward(self, x):
        return self.fc(self.body(x))


def aux(classes=4, size=128):
    return FeatureHead(Small(classes, size).double().eval(), "fc")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: fp.methods.agdm(Small().eval(), latent="penultimate"),
            ValueError,
            r"`auxiliary` must be .*features_and_logits.*FeatureHead.*'fc'",
        ),
        (lambda: fp.methods.agdm(lambda x: x), TypeError, "`auxiliary` must be a torch.nn.Module"),
        (lambda: fp.methods.agdm(aux().train()), ValueError, "`auxiliary` must be in evaluation mode"),
        (lambda: fp.methods.agdm(aux(), eta=-1.0), ValueError, "`eta` must be a finite number >= 0"),
        (lambda: fp.methods.agdm(aux(), scale="1"), TypeError, "`scale` must be a number"),
        (lambda: fp.methods.agdm(aux(), label="true"), ValueError, "`label` must be one of 'input', 'step'"),
        (
            lambda: fp.methods.agdm(aux(), features="x0"),
            ValueError,
            "`features` must be one of 'clean', 'noised'",
        ),
        (
            lambda: fp.methods.agdm(aux(), latent="pooled"),
            ValueError,
            "`latent` must be one of 'logits', 'penultimate'",
        ),
        (
            lambda: fp.methods.agdm(aux(), distance="l1"),
            ValueError,
            "`distance` must be one of 'mse', 'kl'",
        ),
        (
            lambda: fp.methods.agdm(aux(), latent="penultimate", distance="kl"),
            ValueError,
            "`distance` must be 'mse' for latent='penultimate', got 'kl'.*Only logits",
        ),
        (lambda: fp.methods.agdm(aux(), chain=1), ValueError, r"`chain` must be an integer in \[2, 1000\]"),
        (
            lambda: fp.methods.adbm(sampler="heun"),
            ValueError,
            "`sampler` must be one of 'ddim', 'ddpm', 'dpm_solver'",
        ),
        (lambda: fp.methods.adbm(variance="beta"), ValueError, "`variance` must be one of 'small', 'large'"),
        (lambda: fp.methods.adp(rest="never"), ValueError, "`rest` must be one of 'before', 'after'"),
        (lambda: fp.methods.agdm(aux(), sampler="ode"), ValueError, "`sampler` must be one of 'ddpm', 'sde'"),
        (
            lambda: purifier(fp.methods.agdm(aux(size=64))),
            ValueError,
            r"`auxiliary` must be .* images \[2, 8, 8\]",
        ),
        (
            lambda: fp.Defense(purifier(fp.methods.agdm(aux(classes=7))), toy_classifier()),
            ValueError,
            "`auxiliary` must be a network for the classifier's 4 classes, got 7",
        ),
        (lambda: FeatureHead(Small(), "head"), ValueError, "`head` must be one of 'body', 'fc'"),
        (lambda: FeatureHead("net", "fc"), TypeError, "`network` must be a torch.nn.Module"),
        (
            lambda: fp.methods.adbm(schedule="vp"),
            ValueError,
            "`schedule` must be one of 'released', 'training'",
        ),
        (
            lambda: fp.methods.addt("vp", classifier=toy_classifier()),
            ValueError,
            "`sampler` must be 'ddpm', 'ddim' or 'edm' with a classifier, got 'vp'",
        ),
        (lambda: fp.methods.adbm(n_steps=0), ValueError, "`n_steps`"),
        (
            lambda: fp.methods.addt("euler"),
            ValueError,
            "`sampler` must be one of 'ddpm', 'ddim', 'vp', 'edm'",
        ),
        (lambda: fp.methods.addt(strength=0.0), ValueError, "`strength`"),
        (lambda: fp.methods.edm(sigma_min=0.5), ValueError, "`sigma_min` must be below sigma_max"),
        (lambda: fp.methods.edm(sigma_max=1000.0), ValueError, "`sigma_max` must be at most 152"),
        (lambda: fp.methods.edm(churn=-1), ValueError, "`churn` must be a finite number >= 0"),
        (lambda: fp.methods.gradual(()), ValueError, "`stages` must be at least one stage"),
        (lambda: fp.methods.gradual(((30, 31),)), ValueError, r"`stages` must be an integer in \[1, 30\]"),
        (lambda: fp.methods.one_shot(sigma=1e4), ValueError, "`sigma` must be at most"),
        (lambda: fp.methods.one_shot(schedule="vp"), ValueError, "`schedule` must be one of"),
        (lambda: fp.methods.likelihood_max(sigma=(0.6, 0.4)), ValueError, r"`sigma` must be \(low, high\)"),
        (lambda: fp.methods.likelihood_max(n_iter=0), ValueError, "`n_iter` must be an integer >= 1"),
        (lambda: fp.methods.likelihood_max(sigma=0.5), ValueError, "`sigma` must be two numbers"),
        (lambda: fp.methods.adp(bounds=(1.0, 0.1)), ValueError, "`bounds` must be"),
        (lambda: fp.methods.adp(noise=0.0), ValueError, "`noise` must be a finite number above 0"),
        (lambda: fp.methods.langevin(variance=0.0), ValueError, "`variance` must be a finite number above 0"),
    ],
)
def test_mistakes_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_feature_head_gives_what_the_layer_gets():
    network = ResNet(CONFIGS["resnet-digits"]).eval()
    u = torch.rand(3, 1, 8, 8)
    features, logits = FeatureHead(network, "head").features_and_logits(u)
    own, own_logits = network.features_and_logits(u)
    assert torch.equal(features, own)
    assert torch.equal(logits, own_logits)
    assert torch.equal(logits, network(u))
    assert features.shape == (3, 32)
    assert not network.head._forward_pre_hooks, "nothing is left behind"


def test_logits_ask_nothing_else_of_the_auxiliary_network():
    """Any classifier guides: the paper's latents are its logits."""
    method = fp.methods.agdm(Small().double().eval(), t=0.005, scale=1e3)
    assert method.guidance.latent == "logits"
    assert purifier(method)(images(2)).shape == (2, *SHAPE)


class _Grey(nn.Module):
    def forward(self, x, label):
        return 0.3 * x


def test_a_resnet_guides_by_itself_and_gets_no_gradient():
    denoiser = Denoiser.from_module(_Grey().eval(), image_shape=(1, 8, 8))
    network = ResNet(CONFIGS["resnet-digits"]).eval()
    defense = fp.Defense(fp.Purifier(denoiser, fp.methods.agdm(network, t=0.005, scale=1e3)), network)
    u = torch.rand(2, 1, 8, 8).requires_grad_(True)
    defense(u, draw=0).sum().backward()
    assert float(u.grad.abs().max()) > 0
    assert all(weight.grad is None for weight in network.parameters())
