"""Every published layout loads by itself, with the right weights, and says what it is."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastpure import Denoiser, load_denoiser
from fastpure.checkpoints import save_denoiser
from fastpure.checkpoints.edm import _flat, _settings
from fastpure.checkpoints.edm_names import edm_names
from fastpure.checkpoints.guided_diffusion import _recognised
from fastpure.checkpoints.score_sde import _official
from fastpure.errors import CheckpointError
from fastpure.nets import CONFIGS, EDM
from tests.checkpoints.pickles import write_edm_pickle
from tests.golden import FOLDER, config, published, relative_error, tensors
from tests.nets.helpers import output_and_vjp

SCORE_SDE, SCORE_SDE_CONFIG = (FOLDER / f"score_sde_checkpoint_tiny.{end}" for end in ("pth", "json"))
DIFFUSERS = {"diffusers_ddpm_tiny": None, "diffusers_modern_tiny": 2}


def state(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    return denoiser.network.state_dict()


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
    assert one.checkpoint.dropped == ("output channels 3..5 (learned variance, not used by any method)",)
    assert (one.time_input, one.learned_sigma) == ("index", True)


def test_cosine_schedule_is_wrapped():
    settings = {
        **config("adm_tiny")["create_model_kwargs"],
        "noise_schedule": "cosine",
        "diffusion_steps": 4000,
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
        ({"noise_schedule": "linear", "diffusion_steps": 4000}, "noise_schedule"),
        ({"predict_xstart": True}, "predict_xstart must be False, found True"),
        ({"num_heads_upsample": 2}, "num_heads_upsample"),
        ({"n_blocks": 2}, "unknown fields n_blocks"),
        ({"num_res_blocks": None}, "n_blocks"),
        ({"channel_mult": ""}, "channel_mult is missing"),
        ({"channel_mult": "1,2"}, "of another shape"),
        ({"learn_sigma": False}, r"out\.2\.weight \(expected \[3, 32, 3, 3\], found \[6, 32, 3, 3\]\)"),
        ({"class_cond": True}, r"class_label"),
    ],
)
def test_guided_diffusion_configurations(change, message):
    settings = {**config("adm_tiny")["create_model_kwargs"], **change}
    with pytest.raises((CheckpointError, ValueError), match=message):
        load_denoiser(FOLDER / "adm_tiny.pt", config=settings)


def test_unknown_sizes_need_a_configuration():
    for path in (FOLDER / "adm_tiny.pt", SCORE_SDE, FOLDER / "edm_adm_tiny.safetensors"):
        with pytest.raises(ValueError, match="`config` must be the configuration of the weights"):
            load_denoiser(path)


# ---------------------------------------------------------------------------------------------- EDM
def edm_pickle(tmp_path, name: str = "edm_ddpmpp_tiny", **options):
    """The golden weights as a published pickle, and the file that its code would write."""
    settings = {**_flat(config(name), "test"), "precond": "EDMPrecond", "img_channels": 3}
    for field in ("channels_per_head", "in_channels", "out_channels"):
        if settings[field] is None or "channels" in field[:3]:
            settings.pop(field)
    weights = {key.removeprefix("model."): v for key, v in load_file(FOLDER / f"{name}.safetensors").items()}
    write_edm_pickle(tmp_path / "network.pkl", weights, settings, tmp_path / "marker", **options)
    return tmp_path / "network.pkl", tmp_path / "marker"


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


# ---------------------------------------------------------------------------------------- diffusers
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
    scheduler = {"prediction_type": "sample"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    direct = load_denoiser(folder)
    file = load_denoiser(folder / "diffusion_pytorch_model.safetensors")
    pipeline = load_denoiser(tmp_path)
    assert pipeline.prediction == "x0"
    for other in (file, pipeline):
        assert all(torch.equal(value, state(direct)[key]) for key, value in state(other).items())
    for content, message in (
        ({"prediction_type": "flow"}, "prediction_type must be 'epsilon'"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule must be 'linear'"),
    ):
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(tmp_path)


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


# --------------------------------------------------------------------------------------- all of them
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
    weights.pop("all_modules.90.bias")
    with pytest.raises(ValueError, match="not those of ddpmpp-cifar10"):
        _official(weights)
