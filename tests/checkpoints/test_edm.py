"""EDM's pickles, whose code is never run, and its preconditioning and names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastpure import load_denoiser
from fastpure.checkpoints.edm import _flat, _settings
from fastpure.checkpoints.edm_names import edm_names
from fastpure.errors import CheckpointError
from fastpure.nets import EDM
from tests.checkpoints.helpers import state
from tests.checkpoints.pickles import edm_pickle
from tests.golden import FOLDER, config, published


@pytest.mark.parametrize("name", ["edm_ddpmpp_tiny", "edm_adm_tiny"])
def test_published_pickles(tmp_path, name):
    path, marker = edm_pickle(tmp_path, name)
    denoiser = load_denoiser(path)
    direct = load_denoiser(FOLDER / f"{name}.safetensors", config={**config(name), "precond": "edm"})
    assert all(torch.equal(value, state(direct)[key]) for key, value in state(denoiser).items())
    assert denoiser.describe() == direct.describe()
    assert not marker.exists(), "the code in the pickle was run"
    assert denoiser.checkpoint.format == "edm"
    assert denoiser.checkpoint.ema == "averaged (ema)"
    dropped = " ".join(denoiser.checkpoint.dropped)
    for word in ("loss_fn", "dataset_kwargs", "map_augment.weight", "resample_filter"):
        assert word in dropped
    with pytest.raises(ValueError, match="`config` must be None"):
        load_denoiser(path, config={})


def test_pickle_without_constructor_arguments(tmp_path):
    with pytest.raises(CheckpointError, match="expected the network's constructor arguments, found none"):
        load_denoiser(edm_pickle(tmp_path, arguments=False)[0])


def test_edm_preconditioning_must_be_named(tmp_path):
    path = FOLDER / "edm_ddpmpp_tiny.safetensors"
    for wrong, message in (
        (None, r"precond must be 'VPPrecond' or .*, found None"),
        ("VEPrecond", "found 'VEPrecond'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(path, config={**config("edm_ddpmpp_tiny"), "precond": wrong})
    settings = {**config("edm_ddpmpp_tiny"), "precond": "edm"}
    settings["model_kwargs"] = {**settings["model_kwargs"], "decoder_type": "skip"}
    with pytest.raises(CheckpointError, match="decoder_type must be 'standard', found 'skip'"):
        load_denoiser(path, config=settings)
    weights = load_file(path)
    weights["model.enc.8x8_down.conv0.resample_filter"] *= 2
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="resample_filter must be the filter"):
        load_denoiser(tmp_path / "other.safetensors", config={**config("edm_ddpmpp_tiny"), "precond": "edm"})


@pytest.mark.parametrize("keys", ["edm_cifar10_uncond_ddpmpp", "edm_adm_32"])
def test_official_edm_networks_have_the_published_names(keys):
    expected = published(keys)
    with torch.device("meta"):
        network = EDM(_settings(_flat(expected["config"], keys), keys))
    entries = edm_names(network)
    assert set(entries) == set(network.state_dict())
    ours = {
        f"model.{name}": list(shape) for entry in entries.values() for name, shape in entry.theirs.items()
    }
    constants = {*expected["buffers"], "model.map_augment.weight"}
    theirs = {name: shape for name, shape, _ in expected["entries"] if name not in constants}
    assert ours == theirs
    augment = next(shape for name, shape, _ in expected["entries"] if name == "model.map_augment.weight")
    assert sum(p.numel() for p in network.parameters()) + int(np.prod(augment)) == expected["param_count"]
