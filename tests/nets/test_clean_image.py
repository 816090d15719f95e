"""D(x; sigma) agrees with the noise prediction of the same network at the same level, for every convention."""

from __future__ import annotations

import pytest
import torch

from fastpure import Denoiser, load_denoiser
from fastpure.checkpoints import save_denoiser
from fastpure.schedule import VP
from fastpure.schedule.edm import level
from tests.nets.helpers import golden_denoiser
from tests.nets.test_denoiser import CONVENTIONS, SHAPE, make


@pytest.mark.parametrize(("prediction", "time_input"), CONVENTIONS)
def test_clean_image_is_the_state_less_its_noise(prediction, time_input):
    denoiser = make(prediction, time_input).cast(torch.float64)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = [0.45, 0.5, 0.55]
    ours = denoiser.clean_image(x, torch.tensor(sigmas))
    for i, sigma in enumerate(sigmas):
        sigma = float(torch.tensor(sigma))
        row = level(sigma, VP())
        conditioning = denoiser.conditioning(*([row[name]] for name in ("tau", "index", "alpha", "sigma")))
        noise = denoiser.noise_pred(row["alpha"] * x[i : i + 1], conditioning, 0)
        assert torch.allclose(ours[i : i + 1], x[i : i + 1] - sigma * noise, atol=1e-9)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        make().train().clean_image(torch.zeros(1, *SHAPE), torch.ones(1))


def test_the_schedule_travels_with_the_file(tmp_path):
    tiny = golden_denoiser("ddpmpp_ddpmblock_tiny")
    for schedule in ("cosine", "linear"):
        denoiser = Denoiser.from_module(
            tiny.network, time_input="index", image_shape=tiny.image_shape, schedule=schedule
        )
        loaded = load_denoiser(save_denoiser(denoiser, tmp_path / f"{schedule}.safetensors"))
        assert loaded.schedule == loaded.cast(torch.float64).schedule == schedule
