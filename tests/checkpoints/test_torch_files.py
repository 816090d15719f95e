"""score_sde's training checkpoints and guided-diffusion's weights: averages, configurations, schedules, mistakes."""

from __future__ import annotations

import pytest
import torch

from fastpure import load_denoiser
from fastpure.errors import CheckpointError
from fastpure.nets import EDM
from tests.checkpoints.helpers import SCORE_SDE, SCORE_SDE_CONFIG
from tests.golden import FOLDER, config, relative_error, tensors
from tests.nets.helpers import output_and_vjp


# ----------------------------------------------------------------------------------------- score_sde
def test_training_checkpoint_gives_the_averaged_weights():
    """NumPy scalar in the optimizer, storages on cuda:0, module. prefixes, nameless averaged weights."""
    denoiser = load_denoiser(SCORE_SDE, config=SCORE_SDE_CONFIG)
    io = tensors("score_sde_checkpoint_tiny_io")
    output, vjp = output_and_vjp(denoiser, io["x"], io["t"], io["v"])
    assert relative_error(output, io["out"]) < 5e-6
    assert relative_error(vjp, io["vjp"]) < 2e-5
    exact = denoiser.cast(torch.float64)
    output, vjp = output_and_vjp(exact, io["x"].double(), io["t"], io["v"].double())
    assert relative_error(output, io["out_f64"]) < 1e-12
    assert relative_error(vjp, io["vjp_f64"]) < 1e-12
    report = denoiser.checkpoint
    assert report.format == "score_sde"
    assert report.ema == "averaged (ema, decay 0.9999)"
    assert [text.split()[0] for text in report.dropped] == ["sigmas", "model", "optimizer", "step"]


def rewritten(tmp_path, change) -> str:
    """The golden training checkpoint, changed."""
    with torch.serialization.safe_globals([(dict, "numpy.core.multiarray.scalar")]):
        content = torch.load(SCORE_SDE, map_location="cpu", weights_only=False)
    change(content)
    torch.save(content, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["ema"]["shadow_params"].pop(), "expected 152 averaged tensors.*found 151"),
        (
            lambda c: c["ema"]["shadow_params"].insert(0, c["ema"]["shadow_params"].pop()),
            r"weights do not fit DDPMpp.*of another shape: all_modules\.0\.weight",
        ),
        (lambda c: c["model"].pop("module.all_modules.2.bias"), r"model.*1 missing: all_modules\.2\.bias"),
        (lambda c: c.update(ema={"decay": 0.9}), "expected ema with a list shadow_params, found decay"),
        (lambda c: c["ema"]["shadow_params"][3].fill_(torch.nan), r"1 with NaN or Inf: all_modules\.1\.bias"),
    ],
)
def test_inconsistent_training_checkpoints(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(rewritten(tmp_path, change), config=SCORE_SDE_CONFIG)


def test_training_checkpoint_without_averages_says_so(tmp_path):
    denoiser = load_denoiser(rewritten(tmp_path, lambda c: c.pop("ema")), config=SCORE_SDE_CONFIG)
    io = tensors("score_sde_checkpoint_tiny_io")
    assert relative_error(denoiser(io["x"], io["t"]), io["out_raw_model_do_not_match"]) < 5e-6
    assert denoiser.checkpoint.ema.startswith("raw")


# --------------------------------------------------------------------------------- guided-diffusion
def test_both_kinds_of_configuration_describe_the_same_network(tmp_path):
    whole = config("adm_tiny")
    one, other = (
        load_denoiser(FOLDER / "adm_tiny.pt", config={name: whole[name]})
        for name in ("unet_kwargs", "create_model_kwargs")
    )
    assert one.describe() == other.describe()
    assert one.checkpoint.dropped == (
        "output channels 3..5 (learned variance, for variance='learned' alone)",
    )
    assert (one.time_input, one.learned_sigma) == ("index", True)


def test_cosine_schedule_is_wrapped():
    settings = {
        **config("adm_tiny")["create_model_kwargs"],
        "noise_schedule": "cosine",
        "diffusion_steps": 4000,
        "rescale_timesteps": True,
    }
    denoiser = load_denoiser(FOLDER / "adm_tiny.pt", config=settings)
    assert (denoiser.time_input, denoiser.learned_sigma) == ("sigma", False)
    assert isinstance(denoiser.network, EDM)
    plain = load_denoiser(FOLDER / "adm_tiny.pt", config=config("adm_tiny"))
    # At s = 1 the cosine schedule has alpha = sigma = sqrt(1/2), about half-way.
    label = denoiser.network.coefficients(torch.tensor([1.0]))[1]
    x = tensors("adm_tiny_io")["x"][:1]
    expected = plain(x / 2**0.5, label)
    assert 490 < float(label) < 500
    assert relative_error(denoiser(x, torch.tensor([1.0])), expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_schedule": "cosine", "diffusion_steps": 4000, "rescale_timesteps": False}, "noise_schedule"),
        # The default of improved-diffusion is True, that of guided-diffusion False.
        ({"noise_schedule": "cosine", "diffusion_steps": 4000}, "rescale_timesteps is missing"),
        ({"noise_schedule": "linear", "diffusion_steps": 4000}, "noise_schedule"),
        ({"predict_xstart": 1.5}, "`predict_xstart` must be one of False, True"),
        ({"num_heads_upsample": 2}, "num_heads_upsample"),
        ({"n_blocks": 2}, "unknown fields n_blocks"),
        ({"num_res_blocks": None}, "n_blocks"),
        ({"channel_mult": ""}, "channel_mult is missing"),
        ({"channel_mult": "1,2"}, "of another shape"),
        ({"learn_sigma": False}, r"out\.2\.weight \(expected \[3, 32, 3, 3\], found \[6, 32, 3, 3\]\)"),
        ({"class_cond": True}, r"label_emb\.weight"),
    ],
)
def test_guided_diffusion_configurations(change, message):
    settings = {**config("adm_tiny")["create_model_kwargs"], **change}
    with pytest.raises((CheckpointError, ValueError), match=message):
        load_denoiser(FOLDER / "adm_tiny.pt", config=settings)
