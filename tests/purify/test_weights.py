"""A purifier computes what one built anew from the same networks would, whatever happened to their weights since."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

import fastpure as fp
from fastpure.nets import Denoiser
from tests.reverse.toys import SHAPE, toy_classifier

PRECISIONS = ["fp32", "bf16", "fp64"]


def networks():
    fields = {
        "architecture": "ddpmpp",
        "image_size": 8,
        "channels": 2,
        "nf": 16,
        "ch_mult": [1, 2],
        "n_blocks": 1,
    }
    denoiser = Denoiser.from_config({**fields, "attn_resolutions": [4]}, seed=3)
    return denoiser, toy_classifier(torch.float32)


def purifier(denoiser, classifier, precision="fp32", **settings):
    method = fp.methods.coup(classifier, t=0.1, dt=0.04, scale=3.0)
    return fp.Purifier(denoiser, method, precision=precision, **settings)


def images(precision="fp32"):
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    return x.double() if precision == "fp64" else x


def scaled(network):
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.3)


def optimised(network):
    network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()


def loaded(network):
    network.load_state_dict({name: 1.5 * value for name, value in network.state_dict().items()})


def assigned(network):
    network.load_state_dict({name: 1.5 * value for name, value in network.state_dict().items()}, assign=True)


def one_embedding_weight(network):
    with torch.no_grad():
        network.all_modules[0].weight.view(-1)[-1].add_(2.0)


def last_channel(network):
    with torch.no_grad():
        network.all_modules[-1].weight[-1].add_(0.5)


CHANGES = [scaled, optimised, loaded, assigned, one_embedding_weight, last_channel]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("called", [False, True], ids=["not called before", "called before"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_of_the_denoiser_are_followed(precision, called, change):
    denoiser, classifier = networks()
    ours, x = purifier(denoiser, classifier, precision), images(precision)
    before = ours(x) if called else None
    change(denoiser.network)
    expected = purifier(denoiser, classifier, precision)(x)
    assert torch.equal(ours(x), expected)
    assert before is None or not torch.equal(before, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_changes_of_the_guiding_classifier_are_followed(precision):
    denoiser, classifier = networks()
    ours, x = purifier(denoiser, classifier, precision), images(precision)
    ours(x)
    with torch.no_grad():
        classifier.head.weight.mul_(-2.0)
    assert torch.equal(ours(x), purifier(denoiser, classifier, precision)(x))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_loaded_into_the_purifier_itself_count(precision):
    denoiser, classifier = networks()
    ours, x = purifier(denoiser, classifier, precision), images(precision)
    ours(x)
    state = {name: 1.5 * value for name, value in ours.denoiser.state_dict().items()}
    ours.denoiser.load_state_dict(state)
    again = purifier(ours.denoiser, classifier, precision)
    assert torch.equal(ours(x), again(x))


def test_gradients_follow_too():
    denoiser, classifier = networks()
    ours = purifier(denoiser, classifier)

    def gradient(one):
        leaf = images().requires_grad_(True)
        return torch.autograd.grad(one(leaf).square().sum(), leaf)[0]

    gradient(ours)
    scaled(denoiser.network)
    assert torch.equal(gradient(ours), gradient(purifier(denoiser, classifier)))


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("who", ["denoiser", "classifier"])
def test_a_backward_pass_through_a_change_raises(memory, who):
    denoiser, classifier = networks()
    ours, leaf = purifier(denoiser, classifier, memory=memory), images().requires_grad_(True)
    end = ours(leaf).sum()
    scaled(denoiser.network if who == "denoiser" else classifier)
    with pytest.raises(RuntimeError, match="changed between a purification and its backward pass"):
        end.backward()


@pytest.mark.parametrize("ask", ["half", "double", "bfloat16"])
def test_another_dtype_is_refused_and_changes_nothing(ask):
    denoiser, classifier = networks()
    defense, x = fp.Defense(purifier(denoiser, classifier), classifier), images()
    before = defense(x, draw=0)
    for module in (defense, defense.purifier):
        with pytest.raises(
            TypeError, match=r"`dtype` must be left to precision='fp32', got torch\..* precision='"
        ):
            getattr(module, ask)()
        with pytest.raises(TypeError, match="left to precision"):
            module.to(torch.float16)
    assert torch.equal(defense(x, draw=0), before)
    assert torch.equal(defense.to("cpu").float()(x, draw=0), before), "what changes nothing is no mistake"


def test_a_purifier_does_not_keep_networks_that_it_has_copied():
    denoiser, classifier = networks()
    ours, gone = purifier(denoiser, classifier, "bf16"), weakref.ref(denoiser.network)
    expected = ours(images())
    del denoiser
    gc.collect()
    assert gone() is None
    assert torch.equal(ours(images()), expected)


def test_copies_are_on_their_own():
    denoiser, classifier = networks()
    ours, x = purifier(denoiser, classifier), images()
    before = ours(x)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    scaled(denoiser.network)
    for one in copies:
        assert torch.equal(one(x), before)
    assert not torch.equal(ours(x), before)
