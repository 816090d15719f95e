"""Where steps cannot be shared or recorded: a recording per step, eager runs that are said, errors with the reason."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.errors import CaptureError, KernelUnavailable
from fastpure.guidance import Guidance
from fastpure.methods import Method
from fastpure.nets import Denoiser
from fastpure.reverse.graphs import FIRST_APART
from tests.reverse.capturing import both, families, images, pair, same
from tests.reverse.toys import SHAPE, ToyNet, toy_denoiser


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
    assert len(families(graphed)[0].forwards) == len(families(graphed)[0].vjps) == 4


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
    assert len(auto.executor) == 0


def test_insisting_on_graphs_raises_with_the_reason(device):
    purifier = fp.Purifier(toy_denoiser(torch.float32).to(device), looking(True, device), backend="graph")
    for _ in range(FIRST_APART - 1):
        purifier(images(2, device))
    (family,) = families(purifier)
    with pytest.raises(CaptureError, match=r"captur|permitted|waits for the device"):
        purifier(images(2, device))
    assert family not in families(purifier), "what has failed once records no more"


def test_mistakes_of_the_user_are_reported_as_without_graphs(device):
    class Detached(ToyNet):
        def forward(self, x, label):
            return super().forward(x, label).detach()

    denoiser = Denoiser.from_module(Detached().eval(), image_shape=SHAPE)
    graphed, _ = pair(fp.methods.coup_unguided(t=0.1, dt=0.05), device, denoiser)
    graphed(images(1, device))
    with pytest.raises(ValueError, match="`denoiser` must be differentiable"):
        both(graphed, images(1, device))


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
