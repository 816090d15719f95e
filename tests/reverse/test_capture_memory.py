"""What recordings hold and for how long: results, kept states, the bound of the cache, changed weights, copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from fastpure.kernels import use_backend
from fastpure.reverse import GraphLimits
from fastpure.reverse.graphs import FIRST_KEEPING
from tests.reverse.capturing import METHODS, both, families, images, pair, same
from tests.reverse.toys import toy_classifier


def test_nothing_returned_is_overwritten(device):
    method = METHODS["coup_step"](toy_classifier(torch.float32).to(device))
    graphed, _ = pair(method, device, memory="recompute")
    x = images(3, device)
    trajectory, (out, grad) = graphed.trajectory(x), both(graphed, x)
    copies = [t.clone() for t in (trajectory, out, grad)]
    (family,) = families(graphed)
    recorded = [*family.forwards.values(), *family.vjps.values()]
    for buffer in (family.x, family.v, *(t for part in recorded for t in part.outputs.values())):
        buffer.fill_(float("nan"))
    assert same((trajectory, out, grad), copies)
    assert len({state.data_ptr() for state in trajectory.unbind()}) == len(trajectory)
    assert same(both(graphed, x), (out, grad))


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_backward_passes_may_come_late_and_twice(device, memory):
    """What is kept for one purification is overwritten by the next of its shape; gradients stay right."""
    method = METHODS["coup_input"](toy_classifier(torch.float32).to(device))
    graphed, eager = pair(method, device, memory=memory)
    for turn in range(FIRST_KEEPING):
        both(graphed, images(3, device, turn))
    leaves = [images(3, device, seed).requires_grad_(True) for seed in (0, 1)]
    outs = [graphed(leaf, draw=i) for i, leaf in enumerate(leaves)]
    graphed(images(3, device, 5), draw=9)
    for _ in range(2):
        for i, (leaf, out) in enumerate(zip(leaves, outs, strict=True)):
            (grad,) = torch.autograd.grad((out * (out + 0.3)).sum(), leaf, retain_graph=True)
            assert same((out.detach(), grad), both(eager, leaf.detach(), draw=i))


def test_the_cache_is_bounded_in_number_and_bytes(device):
    method = METHODS["coup_step"](toy_classifier(torch.float32).to(device))
    graphed, eager = pair(method, device)
    graphed.executor.limits = GraphLimits(families=2)
    for n in (1, 3, 9, 1, 9, 3):
        x = images(n, device, n)
        assert torch.equal(graphed(x), eager(x))
        assert len(graphed.executor) <= 2
    assert [family.batch for family in families(graphed)] == [9, 3]
    graphed.executor.limits = GraphLimits(nbytes=1)
    assert torch.equal(graphed(images(9, device)), eager(images(9, device)))
    assert [family.batch for family in families(graphed)] == [9]  # the one in use stays
    for turn in range(FIRST_KEEPING + 1):
        assert same(both(graphed, images(9, device, turn)), both(eager, images(9, device, turn)))
    assert not families(graphed)[0].slots, "nothing is kept in recordings beyond the bound"


def test_changed_weights_are_seen(device):
    classifier = toy_classifier(torch.float32).to(device)
    graphed, eager = pair(METHODS["coup_step"](classifier), device)
    x = images(2, device)
    before = graphed(x)
    with torch.no_grad():
        classifier.head.weight.mul_(-2.0)  # in place: a recording reads it where it is
    changed = graphed(x)
    assert torch.equal(changed, eager(x))
    assert not torch.equal(changed, before)
    classifier.head.weight.data = classifier.head.weight.data * 3.0  # elsewhere: another recording
    assert torch.equal(graphed(x), eager(x))
    assert len(families(graphed)) == 2
    graphed.to(device)
    assert len(graphed.executor) == 0


def test_what_chooses_kernels_chooses_recordings(device):
    graphed, eager = pair(METHODS["diffpure"](None), device)
    x = images(2, device)
    graphed(x)
    with use_backend("reference"):
        assert torch.equal(graphed(x), eager(x))
    assert len(families(graphed)) == 2


def test_copies_and_pickles_begin_without_recordings(device):
    graphed, eager = pair(METHODS["diffpure"](None), device)
    x = images(2, device)
    out = graphed(x)
    for other in (copy.deepcopy(graphed), pickle.loads(pickle.dumps(graphed))):
        assert len(other.executor) == 0
        assert torch.equal(other(x), out)
    assert torch.equal(out, eager(x))
