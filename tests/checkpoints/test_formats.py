"""Every published layout loads by itself, with the right weights, and says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastpure import load_denoiser
from fastpure.checkpoints import save_denoiser
from fastpure.checkpoints.guided_diffusion import _recognised
from fastpure.checkpoints.score_sde import _official, plan_score_sde
from fastpure.checkpoints.sources import Source
from fastpure.errors import CheckpointError
from fastpure.nets import CONFIGS
from tests.checkpoints.helpers import SCORE_SDE, SCORE_SDE_CONFIG, state
from tests.golden import FOLDER, config, published

LOADS = {
    "score_sde": lambda: load_denoiser(SCORE_SDE, config=SCORE_SDE_CONFIG),
    "guided_diffusion": lambda: load_denoiser(FOLDER / "adm_tiny.pt", config=config("adm_tiny")),
    "edm": lambda: load_denoiser(
        FOLDER / "edm_adm_tiny.safetensors", config={**config("edm_adm_tiny"), "precond": "vp"}
    ),
    "diffusers": lambda: load_denoiser(FOLDER / "diffusers_modern_tiny", class_label=1),
    "native": lambda: load_denoiser("digits"),
}


@pytest.mark.parametrize("format", LOADS)
def test_round_trip_through_the_native_format(tmp_path, format):
    denoiser = LOADS[format]()
    assert denoiser.checkpoint.format == format
    again = load_denoiser(save_denoiser(denoiser, tmp_path / "model.safetensors"))
    assert all(torch.equal(value, state(again)[name]) for name, value in state(denoiser).items())
    assert again.describe() == denoiser.describe()
    assert again.checkpoint.parameters == denoiser.checkpoint.parameters
    assert denoiser.frozen().checkpoint is denoiser.checkpoint
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    assert not denoiser.network.training


def test_weights_do_not_depend_on_the_file_any_more(tmp_path):
    path = shutil.copy(FOLDER / "adm_tiny.pt", tmp_path / "adm.pt")
    denoiser = load_denoiser(path, config=config("adm_tiny"))
    before = {name: value.clone() for name, value in state(denoiser).items()}
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)
    assert all(torch.equal(value, before[name]) for name, value in state(denoiser).items())
    with pytest.raises(CheckpointError, match="has changed since"):
        _ = denoiser.checkpoint.sha256


def test_report_can_be_read_and_stored():
    report = LOADS["edm"]().checkpoint
    assert json.loads(json.dumps(report.describe()))["dropped"] == list(report.dropped)
    for words in ("sha256", "edm", "53,275", "3x16x16", "sigma"):
        assert words in str(report)


def test_unknown_sizes_need_a_configuration():
    for path in (FOLDER / "adm_tiny.pt", SCORE_SDE, FOLDER / "edm_adm_tiny.safetensors"):
        with pytest.raises(ValueError, match="`config` must be the configuration of the weights"):
            load_denoiser(path)


def test_class_labels_are_checked():
    with pytest.raises(ValueError, match=r"class_label.*\[0, 2\]"):
        load_denoiser(FOLDER / "diffusers_modern_tiny", class_label=3)
    with pytest.raises(ValueError, match="`class_label` must be None for a network without classes"):
        load_denoiser(FOLDER / "diffusers_ddpm_tiny", class_label=0)


def test_official_sizes_are_recognised_without_a_configuration():
    """By names and shapes alone."""

    def shapes(keys: dict) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            return {name: torch.empty(shape) for name, shape, _ in keys["entries"] if name != "sigmas"}

    for keys, expected in (
        ("guided_diffusion_imagenet256_uncond", "adm-imagenet256"),
        ("improved_diffusion_cifar10_uncond_50M", "iddpm-cifar10"),
    ):
        name, settings = _recognised(shapes(published(keys)))
        assert (name, settings.image_size) == (expected, published(keys)["config"]["image_size"])
    weights = shapes(config("keys_score_sde_cifar10_ddpmpp_deep_continuous"))
    assert _official(weights).config == CONFIGS["ddpmpp-cifar10"]
    plan = plan_score_sde(Source(Path("checkpoint_18.pth"), "torch", dict(weights)))
    # The official network of the sub-VP SDE has the same names and shapes: which of them it is, is said to be assumed.
    assert "assumed: vpsde, trained continuously, beta from 0.1 to 20.0" in str(plan.notes)
    assert "subvp/" in str(plan.notes)
    weights.pop("all_modules.90.bias")
    with pytest.raises(ValueError, match="not those of ddpmpp-cifar10"):
        _official(weights)
