"""Commands with a method that takes an energy: where it is named, and what is said where it is not."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.cli.experiment import make_method
from fastpure.cli.purify import _guide, _method
from fastpure.nets import EnergyNet


def test_an_energy_is_set_and_never_the_classifier():
    classifier = fp.load_classifier("digits")
    made = make_method("ebm_langevin", classifier, {"energy": "digits", "n_steps": 2})
    assert isinstance(made.network, EnergyNet)
    with pytest.raises(ValueError, match=r"`--set method.energy=FILE` must be given \(bundled: digits\)"):
        make_method("ebm_langevin", classifier, {"n_steps": 2})


def test_purify_takes_the_energy_where_others_take_a_classifier():
    energy, fingerprint = _guide("digits", None, None, 8, "ebm_langevin")
    assert isinstance(energy, EnergyNet)
    assert len(fingerprint) == 64
    made = _method("ebm_langevin", energy, {"n_steps": 2, "tau": 0.05})
    purified = fp.Purifier(fp.load_denoiser("digits"), made)(torch.rand(2, 1, 8, 8))
    assert purified.shape == (2, 1, 8, 8)
    other, _ = _guide("digits", None, None, 8, "coup")
    assert not isinstance(other, EnergyNet)
