"""Recorded steps whose guidance reads the denoiser's answer, or is all there is: the bits of launched ones."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.reverse.graphs import FIRST_APART, FIRST_KEEPING
from tests.methods.small import toy_energy
from tests.reverse.capturing import both, families, images, pair, same
from tests.reverse.toys import toy_classifier

METHODS = {
    "dps": lambda: fp.methods.dps(n_steps=3, scale=0.3),
    "dps_detached": lambda: fp.methods.dps(n_steps=3, scale=0.3, guidance_grad="detached"),
    "mimic": lambda: fp.methods.mimic(n_steps=4, scale=3.0, guidance_grad="smoothed"),
    "ebm": lambda: fp.methods.ebm_langevin(toy_energy(torch.float32), n_steps=3, tau=0.2),
    "heterogeneous": lambda: fp.methods.heterogeneous(
        toy_classifier(torch.float32), n_steps=3, blocks="conv", mask="soft"
    ),
    "freqpure": lambda: fp.methods.freqpure(n_steps=3),
}


@pytest.mark.parametrize("memory", ["recompute", "store"])
@pytest.mark.parametrize("name", METHODS)
def test_the_same_bits(device, name, memory):
    method = METHODS[name]()
    if method.network is not None:
        method = method.factory(method.network.to(device), **dict(method.settings))
    graphed, eager = pair(method, device, memory=memory)
    for turn in range(FIRST_APART + FIRST_KEEPING):
        x, choice = images(3, device, turn), {"sample_ids": [turn, 40, 9], "draw": turn}
        if turn % 2:
            assert torch.equal(graphed(x, **choice), eager(x, **choice))
        assert same(both(graphed, x, **choice), both(eager, x, **choice))
    assert graphed.execution.backend == "graph"
    (family,) = families(graphed)
    assert len(family.forwards) > 0
    assert len(family.vjps if memory == "recompute" else family.slots) > 0
