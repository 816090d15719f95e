"""What autograd saves is counted without being held."""

from __future__ import annotations

import gc

import pytest
import torch

import fastpure as fp
from fastpure.purify import Purifier
from fastpure.reverse.memory import count_saved_bytes, watch_saved


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_an_operation_that_saves_its_result_frees_it():
    x = torch.rand(3).requires_grad_(True)
    before = alive()
    for _ in range(3):
        with count_saved_bytes() as counter:
            y = x.exp()  # keeps y
        assert counter.total == y.untyped_storage().nbytes()
        del y, counter
    assert alive() <= before


def test_what_is_counted_is_differentiated_as_ever_twice_too():
    def values() -> list[torch.Tensor]:
        x = torch.linspace(0.1, 0.9, 4, dtype=torch.float64).requires_grad_(True)
        y = (x.exp() * x.sigmoid()).softmax(0)
        (g,) = torch.autograd.grad(y[0], x, create_graph=True)
        return [y.detach(), g.detach(), torch.autograd.grad(g.square().sum(), x)[0]]

    exact, seen = values(), []
    with watch_saved(seen.append):
        found = values()
    assert all(torch.equal(a, b) for a, b in zip(exact, found, strict=True))
    assert seen
    assert not any(one.requires_grad for one in seen), "nothing seen holds a graph"


@pytest.mark.parametrize("method", ["likelihood_max", "coup", "diffpure"])
@pytest.mark.parametrize("memory", ["auto", "store", "recompute"])
def test_a_purifier_leaves_nothing_behind(method, memory):
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    x = torch.rand(2, 1, 8, 8)

    def run() -> None:
        settings = {"likelihood_max": {"n_iter": 2}, "diffpure": {"t": 0.1, "dt": 0.05}}
        made = (
            fp.methods.coup(classifier, t=0.1, dt=0.05)
            if method == "coup"
            else getattr(fp.methods, method)(**settings[method])
        )
        purifier = Purifier(denoiser, made, seed=0, memory=memory)
        leaf = x.clone().requires_grad_(True)
        torch.autograd.grad(classifier(purifier(leaf)).sum(), leaf)

    run()
    before = alive()
    run()
    assert alive() <= before
