"""FAB, Square and the ensemble against the package they come from, on a deterministic model."""

from __future__ import annotations

import logging

import pytest
import torch
from pyautoattack import AutoAttack as PublishedAutoAttack
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack

import fastpure as fp
from fastpure.attacks.pyautoattack import _seed
from tests.attacks.toys import Pixels, images, mixture_defense

RADII = {"Linf": 0.06, "L2": 0.25, "L1": 0.9}


def correct(x, y):
    return Pixels()(x).argmax(1) == y


@pytest.mark.parametrize("norm", RADII)
def test_fab_in_batches_breaks_what_the_package_breaks(norm):
    x = images(40)
    y = Pixels()(x).argmax(1)
    settings = {"norm": norm, "eps": RADII[norm], "n_iter": 12}
    ours = fp.attacks.FAB(**settings, batch_size=16)(Pixels(), x, y)
    theirs = FABAttack_PT(Pixels(), **settings, targeted=True, n_target_classes=4, seed=0).perturb(x, y)
    assert torch.equal(ours.robust_correct[:, 0], correct(theirs, y))
    assert 0 < ours.robust_accuracy.estimate < 1


@pytest.mark.parametrize("norm", RADII)
def test_square_in_lockstep_is_the_package_image_by_image(norm):
    x, ids = images(6), torch.tensor([4, 90, 2, 7, 31, 5])
    y = Pixels()(x).argmax(1)
    settings = {"norm": norm, "eps": 2 * RADII[norm], "n_queries": 40}
    ours = fp.attacks.Square(**settings, seed=3)(Pixels(), x, y, sample_ids=ids)
    for i, name in enumerate(ids.tolist()):
        published = SquareAttack(Pixels(), **settings, resc_schedule=False, seed=_seed(3, name))
        with torch.random.fork_rng(devices=[]):
            theirs = published.perturb(x[i : i + 1], y[i : i + 1])
        broken = not bool(correct(theirs, y[i : i + 1]))
        assert broken == (not bool(ours.robust_correct[i, 0]))
        if broken:
            assert torch.allclose(ours.x_adv[i], theirs[0], atol=1e-6)
    assert not bool(ours.robust_correct.all())


def test_the_standard_ensemble_agrees_with_the_package():
    x = images(40, seed=8)
    y = Pixels()(x).argmax(1)
    ours = fp.attacks.AutoAttack(version="standard", eps=0.05, n_iter=20, n_queries=60)(Pixels(), x, y)
    published = PublishedAutoAttack(Pixels(), eps=0.05, version="standard", seed=0)
    published.logger.setLevel(logging.CRITICAL)
    for attack in (published.apgd, published.apgd_targeted, published.fab):
        attack.n_iter = 20
    published.square.n_queries = 60
    published.apgd_targeted.n_target_classes = published.fab.n_target_classes = 4
    with torch.random.fork_rng(devices=[]):
        found = published.run_standard_evaluation(x, y)
    theirs = correct(found[0] if isinstance(found, tuple) else found, y)
    # They start from other random points, so a hair's breadth may decide; more than one image would be a difference.
    assert int((theirs != ours.robust_correct[:, 0]).sum()) <= 1
    assert 0.1 < ours.robust_accuracy.estimate < 0.9


def test_queries_of_an_image_take_its_own_draws(monkeypatch):
    seen: set[tuple[int, int]] = set()
    defense = mixture_defense(Pixels())
    original = defense.purifier.forward

    def spy(x, sample_ids=None, draw=0, **rest):
        pairs = list(zip(torch.as_tensor(sample_ids).tolist(), torch.as_tensor(draw).tolist(), strict=True))
        if rest["domain"] == fp.attacks.gradient.Domain.ATTACK:
            assert not seen & set(pairs), "every query sees fresh draws"
            seen.update(pairs)
        return original(x, sample_ids, draw, **rest)

    monkeypatch.setattr(defense.purifier, "forward", spy)
    x, y, ids = images(3), torch.tensor([0, 1, 2]), [11, 12, 13]
    fp.attacks.Square(eps=1e-4, n_queries=3, eot_iter=2)(defense, x, y, sample_ids=ids)
    assert {name for name, _ in seen} == {11, 12, 13}
    seen.clear()
    fp.attacks.FAB(eps=1e-4, n_iter=2, eot_iter=2, n_target_classes=2)(defense, x, y, sample_ids=ids)
    assert {name for name, _ in seen} == {11, 12, 13}
