"""AutoAttack where some of its losses do not exist: it says what it left out and does the rest."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from tests.attacks.toys import Pixels, images

QUICK = {"eps": 0.05, "n_iter": 2, "n_queries": 3, "eval_draws": 2}


@pytest.mark.parametrize(
    ("version", "classes", "left_out"),
    [
        ("rand", 2, ["apgd-dlr"]),
        ("rand", 3, []),
        ("standard", 2, ["apgd-t"]),
        ("standard", 3, ["apgd-t"]),
        ("standard", 4, []),
    ],
)
def test_members_that_do_not_exist_are_left_out_and_named(version, classes, left_out):
    if version == "standard":
        pytest.importorskip("pyautoattack")
    x = images(3)
    result = fp.attacks.AutoAttack(version=version, **QUICK)(Pixels(classes), x, Pixels(classes)(x).argmax(1))
    assert [note.split(" ")[0] for note in result.notes] == left_out
    for name in left_out:
        assert f"NOTE     {name} is left out: its loss needs" in str(result)


def test_an_ensemble_of_which_nothing_exists_is_refused_with_advice_that_holds():
    x, y = images(3), torch.zeros(3).long()
    nothing = fp.attacks.AutoAttack(version="custom", attacks=("apgd-t", "apgd-dlr"), **QUICK)
    with pytest.raises(ValueError, match="some that exist for 2 classes: apgd-ce, fab, square, got"):
        nothing(Pixels(2), x, y)
    fp.attacks.AutoAttack(version="custom", attacks=("apgd-ce",), **QUICK)(Pixels(2), x, y)


@pytest.mark.parametrize(
    ("attack", "classes", "advice"),
    [
        (fp.attacks.APGDDLR, 2, "Use the attack apgd-ce$"),
        (fp.attacks.APGDT, 2, "Use the attack apgd-ce$"),
        (fp.attacks.APGDT, 3, "Use the attack apgd-ce or apgd-dlr$"),
    ],
)
def test_advice_of_single_attacks_can_be_followed(attack, classes, advice):
    x, y = images(3), torch.zeros(3).long()
    with pytest.raises(ValueError, match=advice):
        attack(n_iter=2)(Pixels(classes), x, y)
    fp.attacks.APGDCE(n_iter=2)(Pixels(classes), x, y)
    if "dlr$" in advice:
        fp.attacks.APGDDLR(n_iter=2)(Pixels(classes), x, y)
