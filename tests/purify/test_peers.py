"""The defence as RobustBench and ART call it; beside the packages in tests/attacks/test_peer_libraries.py."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import fastpure as fp
from fastpure.errors import MissingExtra
from fastpure.purify import as_art_preprocessor, as_robustbench
from tests.attacks.toys import Pixels, images, mixture_defense

DEFENSE = mixture_defense(Pixels(), fp.methods.diffpure(t=0.05, dt=0.025))
X = images(6)


def test_an_image_gets_one_answer_in_any_batch():
    model = as_robustbench(DEFENSE, draw=2)
    assert not model.training
    expected = DEFENSE(X, torch.zeros(6, dtype=torch.int64), 2)
    assert torch.equal(model(X), expected)
    assert torch.allclose(model(X.flip(0)).flip(0), expected, atol=1e-6)
    assert torch.allclose(torch.cat([model(one[None]) for one in X]), expected, atol=1e-6)
    assert not torch.allclose(as_robustbench(DEFENSE)(X), expected)


def test_its_gradient_goes_through_the_purification():
    leaf = X.clone().requires_grad_()
    as_robustbench(DEFENSE)(leaf)[:, 0].sum().backward()
    direct = X.clone().requires_grad_()
    DEFENSE(direct, torch.zeros(6, dtype=torch.int64), 0)[:, 0].sum().backward()
    assert torch.equal(leaf.grad, direct.grad)


def test_random_only_with_a_warning():
    with pytest.warns(RuntimeWarning, match="RobustBench counts deterministic models only"):
        model = as_robustbench(DEFENSE, draw=None)
    assert not torch.equal(model(X), model(X))


def test_an_evaluation_knows_that_nothing_is_random():
    from fastpure.purify import look_through

    target = look_through(as_robustbench(DEFENSE)).probed(X, torch.arange(6))
    assert not target.is_random


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(TypeError, match=r"`defense` must be a fastpure.Defense, got Pixels"):
        as_robustbench(Pixels())
    with pytest.raises(TypeError, match=r"`purifier` must be a fastpure.Purifier, got Defense"):
        as_art_preprocessor(DEFENSE)
    with pytest.raises(ValueError, match="`draw`"):
        as_robustbench(DEFENSE, draw=-1)
    if importlib.util.find_spec("art") is None:
        with pytest.raises(MissingExtra, match=r"pip install 'fastpure\[art\]'"):
            as_art_preprocessor(DEFENSE.purifier)
