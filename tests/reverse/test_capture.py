"""Recorded steps give the bits of launched ones: every method and plan, other draws, ids and batches.

On the CPU a recorder stands in that is as unforgiving as CUDA graphs (`tests/reverse/tracing.py`); on a GPU the same
tests run on graphs.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.errors import CaptureError, KernelUnavailable
from fastpure.guidance import Guidance
from fastpure.kernels import Domain, use_backend
from fastpure.nets import Denoiser
from fastpure.purify.methods import Method
from fastpure.reverse import GraphLimits, recorder
from fastpure.reverse.graphs import FIRST_APART, FIRST_KEEPING
from tests.purify.test_exact_gradients import auxiliary
from tests.reverse import test_adjoint
from tests.reverse.toys import SHAPE, ToyNet, toy_classifier, toy_denoiser
from tests.reverse.tracing import TracingRecorder


def mixed(classifier):
    """Two rounds whose rows differ in nothing but clipping."""
    rounds = [fp.methods.ddim(t=0.2, n_steps=3, clip_x0=clip).table() for clip in (False, True)]
    return Method("mixed", (), rounds[0] + rounds[1], None, True)


METHODS = test_adjoint.METHODS | {"mixed_ddim": mixed}
TWICE = ("coup_step", "coup_input", "dpm_sde_clip", "mixed_ddim")
CASES = [(name, "recompute") for name in METHODS] + [(name, "store") for name in TWICE]
CASES += [("coup_step", "auto"), ("dpm_ode", 40_000), ("coup_detached", "store")]
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request, monkeypatch):
    if request.param == "cpu":
        monkeypatch.setitem(recorder.RECORDERS, "cpu", TracingRecorder)
    return torch.device(request.param)


def pair(method, device, denoiser=None, **choice):
    """The same purifier with graphs and without."""
    denoiser = (denoiser or toy_denoiser(torch.float32)).to(device)
    return tuple(
        fp.Purifier(denoiser, method, seed=7, backend=backend, **choice) for backend in ("graph", "eager")
    )


def images(n, device, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(device)


def both(purifier, x, **choice):
    """Purified images and the gradient of a loss that is not linear in them."""
    leaf = x.clone().requires_grad_(True)
    out = purifier(leaf, **choice)
    return out.detach(), torch.autograd.grad((out * (out + 0.3)).sum(), leaf)[0]


def same(found, exact):
    return all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def families(purifier):
    return list(purifier._graphs()._families.values())


@pytest.mark.parametrize(("name", "memory"), CASES)
def test_the_same_bits_for_every_method_and_plan(device, name, memory):
    method = METHODS[name](toy_classifier(torch.float32).to(device))
    graphed, eager = pair(method, device, memory=memory)
    for turn in range(FIRST_KEEPING if memory == "recompute" else FIRST_KEEPING + 1):
        x, choice = images(3, device, turn), {"sample_ids": [turn, 40, 2**32 - 1], "draw": turn}
        if turn != 1:
            assert torch.equal(graphed(x, **choice), eager(x, **choice))
        assert same(both(graphed, x, **choice), both(eager, x, **choice))
    assert graphed.execution.backend == "graph"
    (family,) = families(graphed)
    assert bool(family.slots) == (memory != "recompute")
    # Rows of one kind share a recording, whatever step they are: first and last steps may differ.
    assert len(family.forwards) <= (3 if "dpm" in name else 2 if "dd" in name else 1)


NETWORKS = {
    "sigma": {"time_input": "sigma"},
    "index": {"time_input": "index"},
    "x0": {"prediction": "x0"},
    "v": {"prediction": "v"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_told_the_noise_level_are_recorded_per_level(device, name):
    torch.manual_seed(0)
    denoiser = Denoiser.from_module(ToyNet().eval(), image_shape=SHAPE, **NETWORKS[name])
    graphed, eager = pair(fp.methods.ddpm(t=0.2, n_steps=5), device, denoiser, memory="recompute")
    x = images(2, device)
    for passes in range(1, FIRST_APART + 1):
        assert torch.equal(graphed(x, draw=passes), eager(x, draw=passes))
        apart = 5 if passes >= FIRST_APART else 0
        assert len(families(graphed)[0].forwards) == (2 if name == "index" else apart)
    for draw in range(2):
        assert same(both(graphed, x, draw=draw), both(eager, x, draw=draw))
    assert len(families(graphed)[0].pulls) == (2 if name == "index" else 5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_the_bundled_network_in_every_precision(device, precision):
    """Its embedding rows are read at the step; with half precision pullbacks are scaled beside each other."""
    denoiser, classifier = fp.load_denoiser("digits").to(device), fp.load_classifier("digits").to(device)
    method = fp.methods.coup(classifier, t=0.1, dt=0.05, scale=2.0)
    for memory in ("store", "recompute") if precision == "fp16" else ("recompute",):
        graphed, eager = (
            fp.Purifier(denoiser, method, precision=precision, memory=memory, backend=backend)
            for backend in ("graph", "eager")
        )
        for draw in range(FIRST_KEEPING if memory == "store" else 1):
            x = torch.rand(2, 1, 8, 8, device=device)
            assert same(both(graphed, x, draw=draw), both(eager, x, draw=draw))
        assert len(families(graphed)[0].pulls if memory == "recompute" else families(graphed)[0].slots) > 0


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_guidance_runs_beside_the_denoiser_in_both_directions(monkeypatch, memory):
    monkeypatch.setitem(recorder.RECORDERS, "cpu", TracingRecorder)
    graphed, _ = pair(METHODS["coup_step"](toy_classifier(torch.float32)), "cpu", memory=memory)
    for turn in range(FIRST_KEEPING):
        both(graphed, images(2, "cpu", turn))
    (family,) = families(graphed)
    # Recomputing: one forward, and one that linearises and pulls back. Keeping: two per row.
    assert family.recorder.beside_count == (3 if memory == "recompute" else 2 * len(family.slots))


def test_one_recording_serves_all_draws_ids_and_domains_apart(device):
    method = METHODS["coup_step"](toy_classifier(torch.float32).to(device))
    graphed, eager = pair(method, device)
    x, made = images(3, device), TracingRecorder.made
    results = []
    for draw, domain in ((0, Domain.DEFENSE), (5, Domain.DEFENSE), (0, Domain.ATTACK)):
        choice = {"sample_ids": [9, 4, draw], "draw": draw, "domain": domain}
        results.append(graphed(x, **choice))
        assert torch.equal(results[-1], eager(x, **choice))
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert len(families(graphed)[0].forwards) == 2  # one per domain, not one per draw or step
    assert device.type == "cuda" or TracingRecorder.made == made + 2


@pytest.mark.parametrize("name", ["coup_step", "coup_input"])
def test_ragged_batches_are_filled_up_and_cut(device, name):
    method = METHODS[name](toy_classifier(torch.float32).to(device))
    graphed, eager = pair(method, device, memory="store")
    ids = torch.arange(10, 18, device=device)
    for _ in range(FIRST_KEEPING):
        both(graphed, images(8, device), sample_ids=ids)
    for n in (5, 7):
        x = images(n, device, seed=n)
        found = both(graphed, x, sample_ids=ids[:n], draw=3)
        assert found[0].shape == x.shape
        filled = torch.cat(
            [x, torch.full((8 - n, *SHAPE), 0.5, device=device)]
        )  # 0 in the state's coordinates
        sentinels = torch.full((8 - n,), 2**32 - 1, device=device)
        draws = torch.tensor([3] * n + [0] * (8 - n), device=device)
        leaf = filled.clone().requires_grad_(True)
        out = eager(leaf, sample_ids=torch.cat([ids[:n], sentinels]), draw=draws)
        (grad,) = torch.autograd.grad((out * (out + 0.3))[:n].sum(), leaf)
        assert torch.equal(found[0], out[:n].detach())
        assert torch.equal(found[1], grad[:n])
        (family,) = families(graphed)
        assert family.keys.sample_ids.tolist() == [*ids[:n].tolist(), *sentinels.tolist()]
        assert not bool(family.x[n:].any())
    assert [family.batch for family in families(graphed)] == [8]
    graphed(images(4, device))
    assert [family.batch for family in families(graphed)] == [8, 4]  # half of it would be wasted


def test_nothing_returned_is_overwritten(device):
    method = METHODS["coup_step"](toy_classifier(torch.float32).to(device))
    graphed, _ = pair(method, device, memory="recompute")
    x = images(3, device)
    trajectory, (out, grad) = graphed.trajectory(x), both(graphed, x)
    copies = [t.clone() for t in (trajectory, out, grad)]
    (family,) = families(graphed)
    recorded = [*family.forwards.values(), *family.pulls.values()]
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
    graphed._graphs().limits = GraphLimits(families=2)
    for n in (1, 3, 9, 1, 9, 3):
        x = images(n, device, n)
        assert torch.equal(graphed(x), eager(x))
        assert len(graphed._graphs()) <= 2
    assert [family.batch for family in families(graphed)] == [9, 3]
    graphed._graphs().limits = GraphLimits(nbytes=1)
    assert torch.equal(graphed(images(9, device)), eager(images(9, device)))
    assert [family.batch for family in families(graphed)] == [9]  # the one in use stays
    for turn in range(FIRST_KEEPING + 1):
        assert same(both(graphed, images(9, device, turn)), both(eager, images(9, device, turn)))
    assert not families(graphed)[0].slots, "nothing is kept in recordings beyond the bound"


@dataclass(frozen=True)
class Looking(Guidance):
    """Pulls towards zero with a strength that depends on the step, and shakes; may look at a value on the host."""

    network: nn.Module
    looks: bool = False
    reads_step: ClassVar[bool] = True

    def context(self, x0):
        return ()

    def gradient(self, x, context, step):
        return self.linearize(x, context, step)[0]

    def linearize(self, x, context, step):
        strength = step.alpha / (step.sigma + step.k + 1)
        if self.looks and float(x.abs().max()) < 0:
            strength = 0.0
        return strength * (step.noise() - x), lambda v: (-strength * v, ())

    def networks(self):
        return (self.network,)

    def cast(self, dtype):
        return self

    def check(self):
        pass


def looking(looks, device):
    table = fp.methods.coup_unguided(t=0.2, dt=0.05).table().guided(1.0)
    return Method("looking", (), table, Looking(nn.Identity().to(device).eval(), looks), True)


def test_a_guidance_that_reads_the_step_is_recorded_per_step_with_its_noise(device):
    graphed, eager = pair(looking(False, device), device, memory="recompute")
    for draw in range(4):  # two passes each
        x = images(2, device, draw)
        assert same(both(graphed, x, draw=draw), both(eager, x, draw=draw))
    assert len(families(graphed)[0].forwards) == len(families(graphed)[0].pulls) == 4


READING = {
    "mse": lambda device: fp.methods.gdmp(t=0.003, rounds=1),
    "ssim": lambda device: fp.methods.gdmp(t=0.003, rounds=1, metric="ssim"),
    "agdm": lambda device: fp.methods.agdm(auxiliary().to(device), t=0.003, scale=100.0, features="noised"),
    "attraction": lambda device: fp.methods.langevin(n_steps=3),
}


@pytest.mark.parametrize(
    ("name", "memory"),
    [("mse", "store"), ("ssim", "recompute"), ("agdm", "store"), ("attraction", "recompute")],
)
def test_gradients_through_what_the_guidance_reads_from_the_input(device, name, memory):
    graphed, eager = pair(READING[name](device), device, toy_denoiser(), precision="fp64", memory=memory)
    for draw in range(FIRST_APART):
        x = images(3, device, draw).double()
        assert same(both(graphed, x, draw=draw), both(eager, x, draw=draw))
    (family,) = families(graphed)
    assert len(family.slots if memory == "store" else family.pulls) > 0
    out, grad = both(graphed, x[:2], draw=4)
    assert torch.allclose(out, both(eager, x[:2], draw=4)[0], atol=1e-12)
    assert torch.allclose(grad, both(eager, x[:2], draw=4)[1], atol=1e-10)
    assert families(graphed) == [family]


def test_a_guidance_that_waits_for_the_device_runs_eagerly_and_says_so_once(device):
    method, denoiser = looking(True, device), toy_denoiser(torch.float32).to(device)
    auto = fp.Purifier(denoiser, method, seed=7, memory="recompute")
    eager = fp.Purifier(denoiser, method, seed=7, backend="eager")
    assert auto.execution.backend == "graph"
    x = images(2, device)
    for _ in range(FIRST_APART - 1):
        auto(x)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs"):
        found = both(auto, x)
    assert same(found, both(eager, x))
    assert auto.execution.backend == "eager"
    assert "could not be recorded" in auto.execution.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(both(auto, x, draw=1), both(eager, x, draw=1))
        assert torch.equal(auto(images(5, device)), eager(images(5, device)))
    assert len(auto._graphs()) == 0


def test_insisting_on_graphs_raises_with_the_reason(device):
    purifier = fp.Purifier(toy_denoiser(torch.float32).to(device), looking(True, device), backend="graph")
    for _ in range(FIRST_APART - 1):
        purifier(images(2, device))
    with pytest.raises(CaptureError, match=r"captur|permitted"):
        purifier(images(2, device))


def test_mistakes_of_the_user_are_reported_as_without_graphs(device):
    class Detached(ToyNet):
        def forward(self, x, label):
            return super().forward(x, label).detach()

    denoiser = Denoiser.from_module(Detached().eval(), image_shape=SHAPE)
    graphed, _ = pair(fp.methods.coup_unguided(t=0.1, dt=0.05), device, denoiser)
    graphed(images(1, device))
    with pytest.raises(ValueError, match="`denoiser` must be differentiable"):
        both(graphed, images(1, device))


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
    assert len(graphed._graphs()) == 0


def test_what_chooses_kernels_chooses_recordings(device):
    graphed, eager = pair(METHODS["diffpure"](None), device)
    x = images(2, device)
    graphed(x)
    with use_backend("reference"):
        assert torch.equal(graphed(x), eager(x))
    assert len(families(graphed)) == 2


def test_recorded_noise_is_not_recorded_again(device):
    method = METHODS["coup_unguided"](None)
    graphed, eager = pair(method, device)
    noise = fp.RecordedNoise(steps=torch.randn(5, 2, *SHAPE))
    x = images(2, device)
    assert torch.equal(graphed(x, noise=noise), eager(x, noise=noise))
    assert not families(graphed)[0].forwards


def test_copies_and_pickles_begin_without_recordings(device):
    graphed, eager = pair(METHODS["diffpure"](None), device)
    x = images(2, device)
    out = graphed(x)
    for other in (copy.deepcopy(graphed), pickle.loads(pickle.dumps(graphed))):
        assert len(other._graphs()) == 0
        assert torch.equal(other(x), out)
    assert torch.equal(out, eager(x))


def test_what_is_planned_and_refused_without_a_recorder():
    denoiser, method = toy_denoiser(torch.float32), fp.methods.coup_unguided(t=0.1, dt=0.05)
    execution = fp.Purifier(denoiser, method).execution
    assert execution.backend == "eager"
    assert "CUDA device" in execution.reason
    assert str(fp.Purifier(denoiser, method, backend="eager").execution) == "eager (asked for)"
    with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'graph', 'eager'"):
        fp.Purifier(denoiser, method, backend="cuda")
    with pytest.raises(KernelUnavailable, match="backend='graph' was asked for, but"):
        fp.Purifier(denoiser, method, backend="graph")(images(1, "cpu"))
    assert "backend='eager'" in repr(fp.Purifier(denoiser, method, backend="eager"))
