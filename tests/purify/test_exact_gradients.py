"""Outputs and gradients of every method against its formulas written out, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastpure as fp
from fastpure.nets import Denoiser
from tests.methods import written_out as plain
from tests.methods.cases import CASES, PROCEDURES, edm_case, error, inputs, networks, ours, reference
from tests.reverse.toys import SHAPE


@pytest.mark.parametrize("name", CASES)
def test_method_is_its_formula_written_out(name):
    method, run = CASES[name]()
    u, v, noise = inputs(method)
    out, grad = reference(run, u, v, noise)
    for memory in ("store", "recompute", "auto"):
        x, g = ours(method, u, v, noise, memory)
        assert error(x, out) < 1e-11
        assert error(g, grad) < 1e-9


def test_edm_with_a_network_that_is_told_sigma():
    """Karras et al.'s own kind of network: it must see x and sigma, though the table walks in other coordinates."""
    method, _ = edm_case()
    net = networks()[0].network
    denoiser = Denoiser.from_module(net, "x0", "sigma", SHAPE)
    u, v, noise = inputs(method)
    leaf = u.clone().requires_grad_(True)
    expected = plain.edm(
        None,
        leaf,
        noise,
        0.5,
        0.002,
        4,
        2.0,
        1.007,
        True,
        lambda x, sigma: net(x, x.new_full((len(x),), sigma)),
    )
    out = fp.Purifier(denoiser, method, precision="fp64")(leaf, noise=fp.RecordedNoise(**noise))
    assert error(out.detach(), expected.detach()) < 1e-11
    grads = [torch.autograd.grad((end * v).sum(), leaf)[0] for end in (out, expected)]
    assert error(*grads) < 1e-9


@pytest.mark.parametrize("name", ["agdm_ddpm", "adbm", "edm", *PROCEDURES])
def test_float32_is_close(name):
    method, run = CASES[name]()
    u, v, noise = inputs(method)
    out, grad = reference(run, u, v, noise)
    x, g = ours(method, u.float(), v.float(), noise, "recompute", "fp32")
    assert error(x.double(), out) < 2e-5
    assert error(g.double(), grad) < 2e-4


@pytest.mark.parametrize(
    ("name", "grad", "low"),
    [
        ("agdm_ddpm", "no_guide_path", 0.1),
        ("agdm_ddpm", "detached", 0.02),
        ("agdm_sde", "no_guide_path", 0.1),
        ("agdm_sde", "detached", 0.02),
        ("agdm_noised_features", "no_guide_path", 0.1),
        # The attraction's two terms nearly cancel where state and input move together.
        ("langevin", "no_guide_path", 0.2),
        ("langevin", "detached", 2e-4),
    ],
)
def test_what_is_left_out_shows(name, grad, low):
    method, _ = CASES[name]()
    u, v, noise = inputs(method)
    _, exact = ours(method, u, v, noise, "store")
    weaker = replace(method, guidance=replace(method.guidance, grad=grad))
    assert error(ours(weaker, u, v, noise, "store")[1], exact) > low
