"""Folders, pipelines and single files of diffusers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastpure import load_denoiser
from fastpure.errors import CheckpointError
from tests.checkpoints.helpers import state
from tests.golden import FOLDER, relative_error
from tests.nets.helpers import output_and_vjp

DIFFUSERS = {"diffusers_ddpm_tiny": None, "diffusers_modern_tiny": 2}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_folder(name):
    denoiser = load_denoiser(FOLDER / name, class_label=DIFFUSERS[name])
    with np.load(FOLDER / name / "io.npz") as file:
        io = {key: torch.from_numpy(file[key]) for key in file.files}
    # diffusers computes the sinusoid in float32, so that float64 differs in the last digits of float32.
    for dtype, suffix, tolerances in (
        (torch.float32, "", (5e-6, 2e-5)),
        (torch.float64, "_f64", (5e-7, 5e-7)),
    ):
        output, vjp = output_and_vjp(denoiser.cast(dtype), io["x"].to(dtype), io["t"], io["v"].to(dtype))
        assert relative_error(output, io[f"out{suffix}"]) < tolerances[0]
        assert relative_error(vjp, io[f"vjp{suffix}"]) < tolerances[1]
    assert (denoiser.prediction, denoiser.time_input) == ("eps", "index")


def test_diffusers_pipelines_old_names_and_single_files(tmp_path):
    """Weights under unet/, a scheduler that says "sample", names from before 2023, a .bin file."""
    folder = FOLDER / "diffusers_ddpm_tiny"
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    for new, old in (
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    ):
        weights = {name.replace(new, old): value for name, value in weights.items()}
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "unet")
    torch.save(weights, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    scheduler = {**json.loads((folder / "scheduler_config.json").read_text()), "prediction_type": "sample"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    direct = load_denoiser(folder)
    file = load_denoiser(folder / "diffusion_pytorch_model.safetensors")
    pipeline = load_denoiser(tmp_path)
    assert pipeline.prediction == "x0"
    for other in (file, pipeline):
        assert all(torch.equal(value, state(direct)[key]) for key, value in state(other).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name must be 'UNet2DModel'"),
        ({"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "mirror"),
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos and freq_shift"),
        ({"downsample_type": "resnet"}, "downsample_type must be 'conv'"),
        ({"block_out_channels": [8, 8]}, "of another shape"),
        ({"layers_per_block": 2}, r"64 missing: down_blocks\.1\.attentions\.1"),
        ({"sample_size": [8, 4]}, "square"),
    ],
)
def test_diffusers_configurations(change, message):
    folder = FOLDER / "diffusers_ddpm_tiny"
    settings = {**json.loads((folder / "config.json").read_text()), **change}
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(folder, config=settings)
