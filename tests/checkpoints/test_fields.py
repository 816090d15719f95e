"""Configurations: every field is honoured, held to a value or harmless; an unknown or missing one is no agreement."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch

import fastpure as fp
from fastpure import load_denoiser
from fastpure.checkpoints import save_denoiser
from fastpure.checkpoints.native import _trained_to
from fastpure.errors import CheckpointError
from fastpure.schedule import VP
from tests.checkpoints.helpers import SCORE_SDE, SCORE_SDE_CONFIG, state
from tests.golden import FOLDER, config, relative_error

TINY = FOLDER / "ddpmpp_tiny.safetensors"


def score_sde(**changes):
    settings = copy.deepcopy(config("ddpmpp_tiny")["config"])
    for path, value in changes.items():
        section, field = path.split("__")
        if value is None:
            del settings[section][field]
        else:
            settings[section][field] = value
    return load_denoiser(TINY, format="score_sde", config=settings)


# ------------------------------------------------------------------------------------------------------ score_sde
def test_another_beta_schedule_is_honoured():
    """At t = 0.1 of the usual schedule the network gets noise 0.322; one trained with beta up to 10 has that later."""
    usual, other = score_sde(), score_sde(model__beta_max=10.0)
    assert (usual.time_input, other.time_input) == ("continuous", "sigma")
    assert "beta from 0.1 to 10.0" in str(other.checkpoint.notes)
    theirs, t = VP(0.1, 10.0), 0.1
    later = theirs.time_of(VP().log_snr_half(t))
    assert theirs.sigma(later) == pytest.approx(VP().sigma(t), rel=1e-12)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    columns = [[999 * t], [100], [VP().alpha(t)], [VP().sigma(t)]]
    found = other.noise_pred(x, other.conditioning(*columns), 0)
    told = usual(x, torch.full((2,), 999 * later))
    assert relative_error(found, told) < 1e-5
    assert relative_error(found, usual(x, torch.full((2,), 999 * t))) > 1e-3
    fp.Purifier(other, fp.methods.diffpure(t=0.01, dt=0.005))((x * 0.1 + 0.5).clamp(0, 1))


def test_another_beta_schedule_survives_our_own_format(tmp_path):
    other = score_sde(model__beta_min=0.2, model__beta_max=10.0)
    again = load_denoiser(save_denoiser(other, tmp_path / "net.safetensors"))
    assert again.describe() == other.describe()
    assert again.network.config.beta_max == 10.0
    usual = load_denoiser(
        FOLDER / "edm_adm_tiny.safetensors", config={**config("edm_adm_tiny"), "precond": "vp"}
    )
    assert "beta_max" not in str(usual.describe()), "identities of the usual schedule are what they were"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training__continuous": False, "model__beta_max": 10.0},
            "model must have beta_min 0.1, beta_max 20.0",
        ),
        (
            {"training__continuous": False, "model__num_scales": 500},
            "num_scales 1000 where training.continuous is False",
        ),
        ({"model__beta_max": 0.05}, "`beta_max` must be above"),
        ({"model__beta_min": float("nan")}, "`beta_min`"),
        ({"training__continuous": "yes"}, "training.continuous must be True or False"),
        ({"model__beta_min": None}, "model.beta_min is missing"),
        ({"model__fir": None}, "model.fir is missing; expected False"),
        ({"training__continuous": None}, "training.continuous is missing"),
        ({"training__sde": None}, "training.sde is missing"),
        ({"data__centered": None}, "data.centered is missing"),
        ({"model__temperature": 2}, "unknown fields model.temperature"),
    ],
)
def test_score_sde_fields_that_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        score_sde(**changes)


def test_steps_of_a_sampler_are_harmless_and_said():
    denoiser = score_sde(model__num_scales=500)
    assert denoiser.time_input == "continuous"
    assert "num_scales 500" in str(denoiser.checkpoint.notes)


def test_unknown_sections_are_refused():
    settings = {**config("ddpmpp_tiny")["config"], "guidance": {"scale": 2}}
    with pytest.raises(CheckpointError, match="unknown sections guidance"):
        load_denoiser(TINY, format="score_sde", config=settings)


# ---------------------------------------------------------------------------------------------- guided-diffusion
def adm(**changes):
    whole = config("adm_tiny")["create_model_kwargs"]
    return load_denoiser(FOLDER / "adm_tiny.pt", config={**whole, **changes})


def test_diffpure_s_own_imagenet_configuration(tmp_path):
    """imagenet.yml's fields with the tiny network's sizes: respacing is the sampler's, the sections are known."""
    model = {
        "attention_resolutions": "8",
        "class_cond": False,
        "diffusion_steps": 1000,
        "rescale_timesteps": True,
        "timestep_respacing": "1000",
        "image_size": 16,
        "channel_mult": "1,1",
        "learn_sigma": True,
        "noise_schedule": "linear",
        "num_channels": 32,
        "num_head_channels": 16,
        "num_res_blocks": 1,
        "resblock_updown": True,
        "use_fp16": True,
        "use_scale_shift_norm": True,
    }
    data = {
        "dataset": "ImageNet",
        "category": "imagenet",
        "image_size": 16,
        "num_channels": 3,
        "random_flip": True,
    }
    denoiser = load_denoiser(FOLDER / "adm_tiny.pt", config={"data": data, "model": model})
    plain = adm()
    sections = {"data": data, "model": model}
    lines = [
        f"{name}:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in fields.items())
        for name, fields in sections.items()
    ]
    file = tmp_path / "imagenet.yml"
    file.write_text("\n".join(lines).replace('"1000"', "'1000'"))
    assert load_denoiser(FOLDER / "adm_tiny.pt", config=file).describe() == plain.describe()
    assert denoiser.describe() == plain.describe()
    assert adm(**model).describe() == plain.describe()
    assert all(torch.equal(value, state(plain)[name]) for name, value in state(denoiser).items())
    for changed, message in (
        ({"centered": False}, "data.centered"),
        ({"num_channels": 1}, "data.num_channels must be"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(FOLDER / "adm_tiny.pt", config={"data": {**data, **changed}, "model": model})
    with pytest.raises(CheckpointError, match="unknown fields rescale_betas"):
        load_denoiser(FOLDER / "adm_tiny.pt", config={"data": data, "model": {**model, "rescale_betas": 1}})


def test_predicted_images_are_honoured():
    plain, image = adm(), adm(predict_xstart=True)
    assert image.prediction == "x0"
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    columns = [[99.9], [100], [0.9], [0.19**0.5]]
    out = plain(x, torch.tensor([100]))
    found = image.noise_pred(x, image.conditioning(*columns), 0)
    assert relative_error(found, (x - 0.9 * out) / 0.19**0.5) < 1e-5


def test_what_is_assumed_is_said():
    notes = str(adm().checkpoint.notes)
    for words in ("noise_schedule 'linear'", "diffusion_steps 1000", "predict_xstart False"):
        assert words in notes
    told = adm(noise_schedule="linear", diffusion_steps=1000, predict_xstart=False)
    assert told.checkpoint.notes == ()


def test_the_number_of_heads_is_no_silent_guess():
    """It shows in no shape: four heads and one have the same weights."""
    whole = config("adm_tiny")["create_model_kwargs"]
    heads = {name: value for name, value in whole.items() if name not in ("num_heads", "num_head_channels")}
    found = load_denoiser(FOLDER / "adm_tiny.pt", config=heads)
    assert "num_heads 4" in str(found.checkpoint.notes)
    assert found.network.config.heads == 4
    assert "num_heads" not in str(adm(num_heads=2, num_head_channels=-1).checkpoint.notes)


def test_fields_beside_a_nested_configuration_are_read():
    whole = config("adm_tiny")
    assert load_denoiser(FOLDER / "adm_tiny.pt", config={**whole, "predict_xstart": True}).prediction == "x0"
    with pytest.raises(CheckpointError, match="unknown fields sampler"):
        load_denoiser(FOLDER / "adm_tiny.pt", config={**whole, "sampler": "x"})
    with pytest.raises(CheckpointError, match="num_heads stands there twice"):
        load_denoiser(FOLDER / "adm_tiny.pt", config={**whole, "num_heads": 2})


# ----------------------------------------------------------------------------------------------------- diffusers
def pipeline(tmp_path, **changes):
    golden = FOLDER / "diffusers_ddpm_tiny"
    shutil.copytree(golden, tmp_path / "unet", dirs_exist_ok=True)
    (tmp_path / "unet" / "scheduler_config.json").unlink()
    (tmp_path / "scheduler").mkdir(exist_ok=True)
    content = {**json.loads((golden / "scheduler_config.json").read_text()), **changes}
    content = {name: value for name, value in content.items() if value != "absent"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
    return load_denoiser(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "unknown fields beta_end, beta_schedule, beta_start",
        ),
        ({"_class_name": "FlowMatchLCMScheduler"}, "_class_name must be 'DDPMScheduler'"),
        ({"_class_name": "EDMEulerScheduler"}, "_class_name must be .*EDM and VE schedulers"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name must be"),
        ({"_class_name": "absent"}, "_class_name is missing"),
        (
            {"prediction_type": "flow_prediction"},
            "prediction_type must be 'epsilon' or 'sample' or 'v_prediction'",
        ),
        ({"beta_schedule": "scaled_linear"}, "beta_schedule must be 'linear' or 'squaredcos_cap_v2'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule must be"),
        ({"beta_schedule": "absent"}, "beta_schedule must be .*found None"),
        ({"beta_start": 0.00085, "beta_end": 0.012}, "beta_start must be 0.0001, found 0.00085"),
        ({"beta_end": "absent"}, "beta_end is missing"),
        ({"num_train_timesteps": 4000}, "num_train_timesteps must be 1000"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas must be None"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr must be False, found True .*no image"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas must be False"),
        ({"variance_type": "learned"}, "variance_type must be 'fixed_small' or .*learned range"),
        ({"shift": 3.0}, "unknown fields shift"),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}, "with squaredcos_cap_v2"),
    ],
)
def test_schedulers_that_are_refused(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        pipeline(tmp_path, **changes)


def test_schedulers_that_are_honoured(tmp_path):
    plain = pipeline(tmp_path)
    assert (plain.prediction, plain.time_input) == ("eps", "index")
    assert pipeline(tmp_path, prediction_type="sample").prediction == "x0"
    assert pipeline(tmp_path, prediction_type="v_prediction").prediction == "v"
    for changes in (
        {"timestep_spacing": "trailing"},
        {"clip_sample": False},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    ):
        assert pipeline(tmp_path, **changes).describe() == plain.describe()
    old = pipeline(tmp_path, prediction_type="absent")
    assert "prediction_type 'epsilon'" in str(old.checkpoint.notes), "the default is told"
    cosine = pipeline(tmp_path, beta_schedule="squaredcos_cap_v2")
    assert cosine.time_input == "sigma"
    assert cosine.network.config.cosine_steps == 1000
    # Half-way, where alpha and sigma are equal, the index is half of 1000 (a little less, for the offset).
    label = float(cosine.network.coefficients(torch.tensor([1.0]))[1])
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert 490 < label < 500
    assert relative_error(cosine(x, torch.tensor([1.0])), plain(x / 2**0.5, torch.tensor([label]))) < 1e-5


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
CONSISTENCY = {"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40, "sigma_max": 80.0}


def scheduled(tmp_path, scheduler, **changes):
    """The tiny network as a pipeline of another scheduler."""
    pipeline(tmp_path)
    content = {**scheduler, **changes}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
    return load_denoiser(tmp_path)


@pytest.mark.parametrize(
    ("changes", "data_at", "scale"),
    [
        ({}, 0, 1000.0),
        ({"shift": 3.0, "use_dynamic_shifting": True, "shift_terminal": 0.1}, 0, 1000.0),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, 0, 1000.0),
        ({"num_train_timesteps": 500}, 0, 500.0),
        ({"invert_sigmas": True}, 1, 1000.0),
    ],
)
def test_flow_matching_of_diffusers(tmp_path, changes, data_at, scale):
    """One Euler step as the scheduler takes it, sample + (next - sigma) answer, is the step of our table."""
    plain, denoiser = pipeline(tmp_path).cast(torch.float64), scheduled(tmp_path, FLOW, **changes)
    assert (denoiser.prediction, denoiser.schedule, denoiser.time_input) == ("flow", "flow", "continuous")
    assert f"told {scale:.0f} t, the image at t = {data_at}" in str(denoiser.checkpoint.notes)
    sigma = 0.3  # of the noise; a scheduler with inverted sigmas counts from the other end
    time, end = (sigma, 0.0) if data_at == 0 else (1 - sigma, 1.0)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answer = plain(x, torch.full((2,), scale * time, dtype=torch.float64))
    theirs = x + (end - time) * answer
    double = denoiser.cast(torch.float64)
    row = fp.methods.flow(t=sigma, n_steps=1).table().rows[-1]
    noise = double.noise_pred(x, double.conditioning([row.tau], [0], [row.alpha], [row.sigma]), 0)
    assert relative_error(row.a * x + row.b * noise, theirs) < 1e-6
    fp.Purifier(denoiser, fp.methods.flow(n_steps=2))((x.float() * 0.1 + 0.5).clamp(0, 1))
    again = load_denoiser(save_denoiser(denoiser, tmp_path / "net.safetensors"))
    assert again.describe() == denoiser.describe()


@pytest.mark.parametrize(
    ("changes", "sigma_data", "sigma_min"),
    [({}, 0.5, 0.002), ({"sigma_data": 0.4, "sigma_min": 0.01}, 0.4, 0.01)],
)
def test_consistency_models_of_diffusers(tmp_path, changes, sigma_data, sigma_min):
    """The scheduler's scalings written out: of the input, of the label, and those of the boundary condition."""
    plain, denoiser = pipeline(tmp_path).cast(torch.float64), scheduled(tmp_path, CONSISTENCY, **changes)
    assert (denoiser.prediction, denoiser.time_input) == ("consistency", "sigma")
    assert f"sigma_data {sigma_data:g}, sigma_min {sigma_min:g}" in str(denoiser.checkpoint.notes)
    y = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sigma in (0.1, 0.8):
        level = torch.full((2,), sigma, dtype=torch.float64)
        scaled = y / (sigma**2 + sigma_data**2) ** 0.5
        answer = plain(scaled, 1000 * 0.25 * level.log())
        skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
        out = (sigma - sigma_min) * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
        expected = out * answer + skip * y
        assert relative_error(denoiser.cast(torch.float64).clean_image(y, level), expected) < 1e-6
    fp.Purifier(denoiser, fp.methods.consistency())((y.float() * 0.1 + 0.5).clamp(0, 1))
    again = load_denoiser(save_denoiser(denoiser, tmp_path / "net.safetensors"))
    assert again.describe() == denoiser.describe()


@pytest.mark.parametrize(
    ("scheduler", "changes", "message"),
    [
        (FLOW, {"prediction_type": "epsilon"}, "unknown fields prediction_type"),
        (FLOW, {"num_train_timesteps": 0}, "`num_train_timesteps` must be an integer >= 1"),
        (FLOW, {"num_train_timesteps": "1000"}, "`num_train_timesteps`"),
        (FLOW, {"invert_sigmas": "yes"}, "invert_sigmas must be False or True"),
        (CONSISTENCY, {"sigma_data": 0}, "`sigma_data` must be"),
        (CONSISTENCY, {"sigma_min": "small"}, "`sigma_min` must be"),
        (CONSISTENCY, {"prediction_type": "sample"}, "unknown fields prediction_type"),
    ],
)
def test_flow_and_consistency_schedulers_that_are_refused(tmp_path, scheduler, changes, message):
    with pytest.raises(CheckpointError, match=message):
        scheduled(tmp_path, scheduler, **changes)


def test_two_sets_of_channels_are_a_variance_only_in_a_chain(tmp_path):
    pipeline(tmp_path)
    file = tmp_path / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "out_channels": 6}))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(FLOW))
    with pytest.raises(CheckpointError, match="out_channels must be 3, found 6 with a scheduler of flow"):
        load_denoiser(tmp_path)


def test_pipelines_without_scheduler_or_with_an_autoencoder(tmp_path):
    pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    load_denoiser(tmp_path)
    (tmp_path / "vqvae").mkdir()
    with pytest.raises(CheckpointError, match="codes of an autoencoder"):
        load_denoiser(tmp_path)
    (tmp_path / "vqvae").rmdir()
    shutil.rmtree(tmp_path / "scheduler")
    with pytest.raises(CheckpointError, match=r"expected scheduler/scheduler_config\.json"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temb_scale": 2}, "unknown fields temb_scale"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional'"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups"),
    ],
)
def test_unets_of_diffusers(change, message):
    folder = FOLDER / "diffusers_ddpm_tiny"
    settings = {**json.loads((folder / "config.json").read_text()), **change}
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(folder, config=settings)


# ----------------------------------------------------------------------------------------------------------- EDM
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augmentation": 1}, "unknown fields augmentation"),
        ({"M": 500, "precond": "vp"}, "M must be 1000, found 500"),
        ({"channel_mult_emb": 2}, "channel_mult_emb must be 4"),
        ({"precond": "VEPrecond"}, "precond must be 'VPPrecond'"),
        ({"sigma_data": 0}, "`sigma_data`"),
    ],
)
def test_edm_fields(change, message):
    whole = config("edm_adm_tiny")
    settings = {
        "model_type": whole["model_type"],
        **whole["model_kwargs"],
        "channels_per_head": 4,
        "precond": "edm",
        **change,
    }
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(FOLDER / "edm_adm_tiny.safetensors", config=settings)


def test_edm_s_constants_are_honoured():
    settings = config("edm_adm_tiny")
    settings["preconditioners"]["vp"] |= {"beta_d": 9.9}
    denoiser = load_denoiser(FOLDER / "edm_adm_tiny.safetensors", config={**settings, "precond": "vp"})
    assert (denoiser.network.config.beta_min, denoiser.network.config.beta_max) == (0.1, 10.0)
    with pytest.raises(CheckpointError, match=r"sigma_data stands there twice, as 0\.3 and 0\.5"):
        load_denoiser(
            FOLDER / "edm_adm_tiny.safetensors", config={**settings, "precond": "edm", "sigma_data": 0.3}
        )
    settings["preconditioners"]["edm"]["sigma_data"] = 0.3
    other = load_denoiser(FOLDER / "edm_adm_tiny.safetensors", config={**settings, "precond": "edm"})
    assert other.network.config.sigma_data == 0.3


# -------------------------------------------------------------------------------------------------------- native
def test_our_own_files_are_whole(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = save_denoiser(load_denoiser(SCORE_SDE, config=SCORE_SDE_CONFIG), tmp_path / "net.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)

    def changed(entry, change):
        content = json.loads(metadata[entry])
        change(content)
        save_file(weights, path, {**metadata, entry: json.dumps(content)})
        return load_denoiser(path)

    for entry, change, message in (
        ("config", lambda c: c.pop("dropout"), "dropout missing"),
        ("config", lambda c: c.update(depth=3), "depth"),
        ("denoiser", lambda c: c.pop("prediction"), "prediction is missing"),
        ("denoiser", lambda c: c.pop("learned_sigma"), "learned_sigma"),
        ("denoiser", lambda c: c.update(guidance=1), "unknown fields denoiser.guidance"),
        ("denoiser", lambda c: c.update(prediction="score"), "prediction must be 'eps' or 'x0' or 'v'"),
        ("denoiser", lambda c: c.update(prediction="flow"), "`schedule` must be 'flow' or 'flowpure'"),
        ("denoiser", lambda c: c.update(data_at=1), "`data_at` must be None"),
    ):
        with pytest.raises(CheckpointError, match=message):
            changed(entry, change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"config": ' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
        ('{"data": {}, "data": {}}', "data stands there twice"),
        ('{"a": ' + "9" * 5000 + "}", "not a readable JSON file"),
        ("\ud800".encode("utf-8", "surrogatepass"), "not a readable"),
        (" " * (1 << 24) + "{}", "which is no text by hand"),
    ],
)
def test_json_that_is_none(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(TINY, format="score_sde", config=path)


@pytest.mark.parametrize("noted", [-1, 0, "inf", float("inf"), float("nan"), 1e300, "x", [1], None])
def test_a_noted_level_that_is_none_says_nothing_about_training(noted):
    assert _trained_to({"loss": json.dumps({"levels": {"sigma_max": noted}})}) is None
    assert _trained_to({"t_max": str(noted)}) is None


@pytest.mark.parametrize("level", [0.5, 80.0])
def test_a_noted_level_is_the_time_at_which_the_noise_has_it(level):
    time = _trained_to({"loss": json.dumps({"levels": {"sigma_max": level}})})
    assert time is not None
    assert VP().sigma(time) / VP().alpha(time) == pytest.approx(level, rel=1e-6)
    # The time itself goes first.
    assert _trained_to({"loss": json.dumps({"levels": {"sigma_max": level, "t_max": 0.3}})}) == 0.3
