"""Every setting of every method: what it cannot be is refused by name, at once, whether it is used or not."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from fastpure.classifiers import FeatureHead
from fastpure.methods import METHODS, edm, make, spec
from fastpure.signatures import kinds

NUMBERS = (0, -1, 10**12, 10**400, float("nan"), float("inf"), -float("inf"), 1e300)
FOREIGN = (
    "x",
    b"x",
    (),
    (1,),
    {"a": 1},
    [1, 2, 3],
    None,
    np.float64("nan"),
    torch.tensor(1.0),
    torch.ones(2),
    object(),
)
VARIANTS = {
    "addt": ({}, {"sampler": "edm"}, {"sampler": "vp"}),
    "agdm": ({}, {"sampler": "sde"}),
    "gdmp": ({}, {"metric": "ssim"}),
}


def network() -> nn.Module:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 5)).eval()
    return FeatureHead(layers, head="2")


def attempts(name: str):
    takes = spec(name)
    given = {} if takes.network is None or not takes.required else {takes.network: network()}
    for variant in VARIANTS.get(name, ({},)):
        for setting, _ in takes.settings:
            if setting not in variant:
                for value in (*NUMBERS, *FOREIGN):
                    yield setting, {**given, **variant, setting: value}


def attempt(name: str, settings: dict) -> tuple[str | None, object]:
    """(the refusal, None) or (None, the method)."""
    try:
        return None, make(name, **settings)
    except (TypeError, ValueError) as error:
        return str(error), None


@pytest.mark.parametrize("name", METHODS)
def test_what_a_setting_cannot_be(name):
    written = kinds(METHODS[name])
    for setting, settings in attempts(name):
        value, kind = settings[setting], written[setting]
        began = time.perf_counter()
        refusal, made = attempt(name, settings)
        if refusal is not None:
            assert f"`{setting}" in refusal, f"{setting}={value!r:.40}: {refusal}"
        else:
            hash(made)
            fine = {
                "float": isinstance(value, int | float) and abs(value) <= 1e12,
                "int": isinstance(value, int),
                "bool": isinstance(value, bool),
                "tuple[int, int, int]": value == [1, 2, 3],
                "str": isinstance(value, str),  # a choice that this variant does not look at
            }
            assert value is None or fine.get(kind.removesuffix(" | None"), False), f"{setting}={value!r:.40}"
        assert time.perf_counter() - began < 10


#: langevin counts its steps; dt is their length only.
TIMED = [name for name in METHODS if "dt" in dict(spec(name).settings) and name != "langevin"]


@pytest.mark.parametrize("name", TIMED)
def test_steps_too_small_to_be_counted(name):
    takes = spec(name)
    given = {takes.network: network()} if takes.required else {}
    if name == "agdm":
        given["sampler"] = "sde"
    with pytest.raises(ValueError, match="`dt` must be at least"):
        make(name, **given, dt=1e-12)


def test_no_steps_at_all():
    """Was a ZeroDivisionError."""
    with pytest.raises(ValueError, match="`n_steps` must be an integer >= 1, got 0"):
        edm(n_steps=0)
