"""A UNet2DModel of diffusers by ``from_module``: the answers of diffusers itself, from the module as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fastpure as fp
from fastpure.errors import CheckpointError
from tests.checkpoints.helpers import state
from tests.golden import FOLDER, relative_error

FOLDERS = [FOLDER / "diffusers_ddpm_tiny", FOLDER / "diffusers_modern_tiny"]


def stand_in(folder, **change) -> nn.Module:
    """Has the class name, configuration and tensors of diffusers' module, and none of its code."""

    class UNet2DModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = json.loads((folder / "config.json").read_text())
            config.pop("_class_name"), config.pop("_diffusers_version", None)
            self.config = {**config, "_use_default_values": ["dropout"], **change}
            self.weights = load_file(folder / "diffusion_pytorch_model.safetensors")
            self.device = nn.Parameter(torch.zeros(1))

        def state_dict(self):
            return self.weights

    UNet2DModel.__module__ = "diffusers.models.unets.unet_2d"
    return UNet2DModel().eval()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_instance_is_read_like_its_folder(folder):
    found = fp.Denoiser.from_module(stand_in(folder))
    expected = fp.load_denoiser(folder)
    assert found.describe() == expected.describe()
    assert all(value.equal(state(expected)[name]) for name, value in state(found).items())
    assert not any(p.requires_grad for p in found.parameters())
    assert not found.training


def test_what_diffusers_itself_answered():
    folder = FOLDERS[0]
    io = np.load(folder / "io.npz")
    denoiser = fp.Denoiser.from_module(stand_in(folder), compile=False)
    with torch.no_grad():
        out = denoiser(torch.from_numpy(io["x"]), torch.from_numpy(io["t"]))
    assert relative_error(out, torch.from_numpy(io["out"])) < 1e-5


def scheduler(name="DDPMScheduler", **fields):
    base = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    made = type(name, (), {})()
    made.config = {**base, "prediction_type": "epsilon", "_use_default_values": [], **fields}
    return made


def test_the_scheduler_says_what_is_predicted():
    unet = stand_in(FOLDERS[0])
    velocity = fp.Denoiser.from_module(unet, scheduler=scheduler(prediction_type="v_prediction"))
    assert (velocity.prediction, velocity.time_input) == ("v", "index")
    cosine = fp.Denoiser.from_module(unet, scheduler=scheduler(beta_schedule="squaredcos_cap_v2"))
    assert cosine.time_input == "sigma"
    assert fp.Denoiser.from_module(unet, "v").prediction == "v"
    config = {**scheduler().config, "_class_name": "DDIMScheduler"}
    assert fp.Denoiser.from_module(unet, scheduler=config).prediction == "eps"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"time_input": "continuous"}, ValueError, "'index'"),
        ({"prediction": "flow"}, ValueError, "scheduler"),
        ({"prediction": "v", "scheduler": scheduler()}, ValueError, "alone"),
        ({"scheduler": scheduler("EDMEulerScheduler")}, CheckpointError, "_class_name"),
        (
            {"scheduler": scheduler(num_train_timesteps=500)},
            CheckpointError,
            "num_train_timesteps must be 1000",
        ),
        ({"scheduler": 3}, TypeError, "`scheduler`"),
        ({"image_shape": (3, 32, 32)}, ValueError, "as configured"),
    ],
)
def test_contradictions(options, kind, words):
    with pytest.raises(kind, match=words):
        fp.Denoiser.from_module(stand_in(FOLDERS[0]), **options)


def test_another_architecture_is_refused_with_the_way_out():
    with pytest.raises(CheckpointError, match=r"time_embedding_type.*unet\(x, labels\)\.sample"):
        fp.Denoiser.from_module(stand_in(FOLDERS[0], time_embedding_type="fourier"))


def test_a_scheduler_is_for_diffusers_only():
    with pytest.raises(ValueError, match="left out but for diffusers"):
        fp.Denoiser.from_module(nn.Identity(), scheduler=scheduler())


def test_diffusers_own_module():
    diffusers = pytest.importorskip("diffusers")
    settings = json.loads((FOLDERS[0] / "config.json").read_text())
    unet = diffusers.UNet2DModel.from_config(settings).eval()
    x, labels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 800])
    chain = diffusers.DDPMScheduler(prediction_type="v_prediction")
    denoiser = fp.Denoiser.from_module(unet, scheduler=chain)
    assert denoiser.prediction == "v"
    with torch.no_grad():
        assert relative_error(denoiser(x, labels), unet(x, labels).sample) < 1e-5
        parameter = next(unet.parameters())
        before = denoiser(x, labels)
        parameter.add_(1.0)
        assert denoiser(x, labels).equal(before)
