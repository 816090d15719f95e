"""Recorded steps give the bits of launched ones: every method and plan, other draws, ids and batches.

On the CPU a recorder stands in that is as unforgiving as CUDA graphs (`tests/reverse/tracing.py`); on a GPU the same
tests run on graphs.
"""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.kernels import Domain
from fastpure.nets import Denoiser, frozen, fused
from fastpure.nets.narrow import Programs
from fastpure.reverse import recorder
from fastpure.reverse.graphs import FIRST_APART, FIRST_KEEPING
from tests.methods.cases import auxiliary
from tests.reverse.capturing import METHODS, both, families, images, pair, same
from tests.reverse.toys import SHAPE, ToyNet, toy_classifier, toy_denoiser
from tests.reverse.tracing import TracingRecorder

TWICE = ("coup_step", "coup_input", "dpm_sde_clip", "mixed_ddim")
CASES = [(name, "recompute") for name in METHODS] + [(name, "store") for name in TWICE]
CASES += [("coup_step", "auto"), ("dpm_ode", 40_000), ("coup_detached", "store")]


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
    assert len(families(graphed)[0].vjps) == (2 if name == "index" else 5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_the_bundled_network_in_every_precision(monkeypatch, device, precision):
    """Its embedding rows are read at the step; with half precision pullbacks are scaled beside each other."""
    # On the host it is one call, or packed weights that are compared: neither is what the stand-in records.
    monkeypatch.setattr(Programs, "run", lambda *args: None)
    monkeypatch.setattr(frozen, "can_pack", lambda *args: False)
    monkeypatch.setattr(fused, "can_map", lambda *args: False)
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
        assert len(families(graphed)[0].vjps if memory == "recompute" else families(graphed)[0].slots) > 0


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
    assert len(family.slots if memory == "store" else family.vjps) > 0
    out, grad = both(graphed, x[:2], draw=4)
    assert torch.allclose(out, both(eager, x[:2], draw=4)[0], atol=1e-12)
    assert torch.allclose(grad, both(eager, x[:2], draw=4)[1], atol=1e-10)
    assert families(graphed) == [family]


def test_recorded_noise_is_not_recorded_again(device):
    method = METHODS["coup_unguided"](None)
    graphed, eager = pair(method, device)
    noise = fp.RecordedNoise(steps=torch.randn(5, 2, *SHAPE))
    x = images(2, device)
    assert torch.equal(graphed(x, noise=noise), eager(x, noise=noise))
    assert not families(graphed)[0].forwards
