"""A purification's gradient exists once: whoever asks for a second derivative is told, in whatever way he asks."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser


def purifiers():
    classifier = toy_classifier(torch.float32)
    denoiser = toy_denoiser(torch.float32)
    methods = {
        "table": fp.methods.coup(classifier, t=0.1, dt=0.05),
        "unguided": fp.methods.diffpure(t=0.1, dt=0.05, clip_output=True),
        "reads its input": fp.methods.gdmp(t=0.003, rounds=1),
        "procedure": fp.methods.likelihood_max(n_iter=2, classifier=classifier),
    }
    return {
        f"{name}, {memory}": fp.Purifier(denoiser, method, memory=memory)
        for name, method in methods.items()
        for memory in ("store", "recompute")
    }


@pytest.fixture
def x():
    return torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))


WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


@way
def backward_twice(f, x):
    (g,) = torch.autograd.grad(f(x), x, create_graph=True)
    g.square().sum().backward()


@way
def grad_twice(f, x):
    (g,) = torch.autograd.grad(f(x), x, create_graph=True)
    torch.autograd.grad(g.sum(), x)


@way
def grad_twice_allowing_unused(f, x):
    (g,) = torch.autograd.grad(f(x), x, create_graph=True)
    torch.autograd.grad(g.square().sum(), x, allow_unused=True)


@way
def hessian_vector_product(f, x):
    torch.autograd.functional.hvp(f, x, torch.ones_like(x))


@way
def hessian(f, x):
    torch.autograd.functional.hessian(f, x)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", purifiers())
def test_every_way_to_ask_raises(name, how, x):
    purifier = purifiers()[name]
    leaf = x.clone().requires_grad_(True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        WAYS[how](lambda u: purifier(u).square().sum(), leaf)


@pytest.mark.parametrize("how", WAYS)
def test_a_gradient_that_depends_on_the_input_alone_raises_too(how, x):
    """The cotangent is a constant here: only the states that the function saved lead to the image."""
    purifier = purifiers()["table, store"]
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        WAYS[how](lambda u: purifier(u).sum(), x.clone().requires_grad_(True))


def test_first_derivatives_stay_what_they_are(x):
    purifier = purifiers()["table, store"]
    leaf = x.clone().requires_grad_(True)
    (plain,) = torch.autograd.grad(purifier(leaf).sum(), leaf)
    (kept,) = torch.autograd.grad(purifier(leaf).sum(), leaf, create_graph=True)
    assert torch.equal(plain, kept)
    assert torch.equal(torch.autograd.grad((leaf * kept.detach()).sum(), leaf)[0], plain)
