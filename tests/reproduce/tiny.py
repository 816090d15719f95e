"""Experiments of seconds: two defences, an attack of two iterations, one drawing each."""

from __future__ import annotations

from dataclasses import replace

from fastpure.presets import MethodSpec, Published
from fastpure.reproduce.experiment import Experiment
from fastpure.reproduce.parts import Assault, Defence, Images, Row
from fastpure.reproduce.shared import COUP, DIFFPURE, FRESH

STEPS = (("t", 0.1), ("dt", 0.05), ("solver", "exponential"))
PGD = Assault(
    "PGD-200",
    "pgd",
    (("norm", "Linf"), ("eps", 8 / 255), ("n_iter", 200), ("eot_iter", 20)),
    (("eps", 0.2), ("n_iter", 2), ("eot_iter", 1)),
    "PGD-2",
)
PLAIN = replace(DIFFPURE, small=MethodSpec("diffpure", STEPS))
GUIDED = replace(COUP, small=MethodSpec("coup", (*STEPS, ("scale", 2.0)), "classifier"))
UNGUIDED = Defence("unguided", "coup-cifar10-linf", MethodSpec("coup_unguided", STEPS))
NUMBER = Published("AutoAttack", 90.04, 73.05, "COUP Table 1", "P")
RULE = replace(FRESH, draws=3)


def rows() -> tuple[Row, ...]:
    """Two rows of one attack each; the paper has a number for the second."""
    return Row(PLAIN, (PGD,), RULE), Row(GUIDED, (PGD,), RULE, (NUMBER,))


def experiment(*drawings, rows=None, images: int = 4) -> Experiment:
    """One of these rows and drawings."""
    given = globals()["rows"]() if rows is None else rows
    return Experiment("tiny", "A paper, 2024", "A title", given, drawings, Images(small=images))
