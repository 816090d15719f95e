"""EDM's networks and preconditioning against the reference implementation's numbers and a plain SongUNet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastpure import Denoiser, load_denoiser
from fastpure.checkpoints.edm import _settings
from fastpure.checkpoints.edm_names import edm_names
from fastpure.nets import EDM, EDMConfig
from fastpure.nets.fir import filtered
from fastpure.schedule import VP
from tests.golden import FOLDER, config, relative_error, tensors
from tests.nets.helpers import normal, output_and_vjp, plain_autograd
from tests.nets.plain_song import PlainSong

GOLDEN = ("edm_ddpmpp_tiny", "edm_adm_tiny")
SONG = {
    "model_type": "SongUNet",
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 0,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "precond": "edm",
}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}


def golden(name: str, preconditioning: str, dtype: torch.dtype) -> Denoiser:
    settings = {**config(name), "precond": preconditioning}
    return load_denoiser(FOLDER / f"{name}.safetensors", config=settings).cast(dtype)


@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerances"),
    [(torch.float32, "", (5e-6, 2e-5)), (torch.float64, "_f64", (1e-12, 1e-12))],
)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_raw_network(name, dtype, suffix, tolerances):
    io = tensors(f"{name}_io")
    network = golden(name, "edm", dtype).network.network
    output, vjp = output_and_vjp(network, io["x"].to(dtype), io["noise_labels"], io["v"].to(dtype))
    assert relative_error(output, io[f"raw{suffix}"]) < tolerances[0]
    assert relative_error(vjp, io[f"raw_vjp{suffix}"]) < tolerances[1]


@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerance"), [(torch.float32, "", 5e-5), (torch.float64, "_f64", 1e-12)]
)
@pytest.mark.parametrize("preconditioning", ["vp", "edm"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_denoised_image(name, preconditioning, dtype, suffix, tolerance):
    """y minus s times the predicted noise is the reference's D(y; s)."""
    io = tensors(f"{name}_io")
    denoiser = golden(name, preconditioning, dtype)
    sigma = io["sigma"].to(dtype)

    def denoised(y, s):
        return y - s[:, None, None, None] * denoiser(y, s)

    output, vjp = output_and_vjp(denoised, io["x_noisy"].to(dtype), sigma, io["v"].to(dtype))
    assert relative_error(output, io[f"{preconditioning}_D{suffix}"]) < tolerance
    assert relative_error(vjp, io[f"{preconditioning}_D_vjp{suffix}"]) < tolerance
    found = denoiser.network.coefficients(io["sigma"])
    for ours, theirs in zip(found[:2], ("c_in", "c_noise"), strict=True):
        assert relative_error(ours, io[f"{preconditioning}_{theirs}_f64"]) < 1e-12


@pytest.mark.parametrize("preconditioning", ["vp", "edm"])
def test_predicted_noise_in_our_states(preconditioning):
    """x = alpha x0 + sigma noise: what `noise_pred` returns is (y - D)/s for y = x/alpha, s = sigma/alpha."""
    io = tensors("edm_ddpmpp_tiny_io")
    denoiser = golden("edm_ddpmpp_tiny", preconditioning, torch.float64)
    schedule = VP()
    for i, s in enumerate(io["sigma"].double().tolist()):
        t = schedule.time_of(-math.log(s))
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        columns = (np.array([value]) for value in (999 * t, 0, alpha, sigma))
        table = denoiser.conditioning(*columns)
        y, d = io["x_noisy"][i : i + 1].double(), io[f"{preconditioning}_D_f64"][i : i + 1]
        assert relative_error(denoiser.noise_pred(alpha * y, table, 0), (y - d) / s) < 1e-10


def test_vp_network_sees_the_state_and_the_continuous_label():
    """Under the continuous VP schedule the preconditioning is nothing: F(x, 999 t)."""
    denoiser = golden("edm_ddpmpp_tiny", "vp", torch.float64)
    schedule, x = VP(), normal(1, 3, 16, 16)
    for t in (1e-5, 0.1, 0.9):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        table = denoiser.conditioning(*(np.array([value]) for value in (0, 0, alpha, sigma)))
        direct = denoiser.network.network(x, torch.tensor([999 * t], dtype=torch.float64))
        assert relative_error(denoiser.noise_pred(x, table, 0), direct) < 1e-9


def test_cosine_schedule_is_inverted():
    """Nichol and Dhariwal's cumulative product, step by step, leads back to every integer label."""
    steps = 100
    network = EDM(EDMConfig(_small("ddpmpp"), "cosine", cosine_steps=steps))

    def amplitude(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - amplitude((i + 1) / steps) / amplitude(i / steps), 0.999) for i in range(steps)]
    alpha_bar = np.cumprod(1 - np.array(betas))[: steps - 1]  # the last rate is cut off at 0.999
    labels = network.coefficients(torch.from_numpy(np.sqrt((1 - alpha_bar) / alpha_bar)))[1]
    np.testing.assert_allclose(labels.numpy(), np.arange(steps - 1) * 1000 / steps, atol=1e-8)


def _small(architecture: str) -> dict:
    if architecture == "adm":
        return {"architecture": "adm", "image_size": 8, "model_channels": 8, "widths": (8,), "n_blocks": 1,
                "groups": 4, "learned_sigma": True}  # fmt: skip
    return {"architecture": "ddpmpp", "image_size": 8, "nf": 8, "ch_mult": (1,), "n_blocks": 1}


@pytest.mark.parametrize("preconditioning", ["vp", "edm", "cosine"])
@pytest.mark.parametrize("architecture", ["adm", "ddpmpp"])
def test_hoisting_casting_and_rebuilding(architecture, preconditioning):
    fields = {"architecture": "edm", "network": _small(architecture), "preconditioning": preconditioning}
    denoiser = Denoiser.from_config(fields, seed=1)
    assert (denoiser.time_input, denoiser.prediction, denoiser.learned_sigma) == ("sigma", "eps", False)
    assert Denoiser.from_config(denoiser.describe()["config"], seed=1).describe() == denoiser.describe()
    columns = [np.array([50.0]), np.array([50]), np.array([0.9]), np.array([math.sqrt(0.19)])]
    x = normal(2, 3, 8, 8, dtype=torch.float32)
    exact = denoiser.cast(torch.float64)
    reference = exact.noise_pred(x.double(), exact.conditioning(*columns), 0)
    hoisted = denoiser.frozen()
    assert relative_error(hoisted.noise_pred(x, hoisted.conditioning(*columns), 0), reference) < 1e-5
    assert relative_error(denoiser.noise_pred(x, denoiser.conditioning(*columns), 0), reference) < 1e-5
    half = denoiser.cast(torch.bfloat16)
    assert relative_error(half.noise_pred(x, half.conditioning(*columns), 0), reference) < 0.05


@pytest.mark.parametrize(
    ("fields", "label"), [({}, None), (NCSNPP, None), ({"label_dim": 5}, 3), ({"label_dim": 5}, None)]
)
def test_song_unet_against_a_plain_one(tmp_path, fields, label):
    """Filtered resampling, Fourier features, the image at every level, classes: no recorded numbers exist, so a
    second program, written from EDM's description with torch's own operations and EDM's names, decides."""
    settings = {**SONG, **fields}
    with torch.device("meta"):
        network = EDM(_settings(settings, "test"))
    shapes = {name: shape for entry in edm_names(network).values() for name, shape in entry.theirs.items()}
    weights = {
        name: 0.3 * normal(*shape, seed=i) + (name.endswith("norm0.weight"))
        for i, (name, shape) in enumerate(shapes.items())
    }
    torch.save({f"model.{name}": value for name, value in weights.items()}, tmp_path / "song.pt")
    denoiser = load_denoiser(tmp_path / "song.pt", config=settings, class_label=label)
    ours = denoiser.network.network
    plain = PlainSong(weights, 8, 2, 1, (4,), ncsnpp=bool(fields.get("resample_filter")), label=label)
    if fields.get("label_dim") and label is None:
        _each_image_its_class(ours, weights)
    x, labels, v = normal(2, 3, 8, 8), torch.tensor([0.3, -0.2]).double(), normal(2, 3, 8, 8, seed=1)
    expected = output_and_vjp(plain, x, labels, v)
    for found, theirs in zip(output_and_vjp(ours, x, labels, v), expected, strict=True):
        assert relative_error(found, theirs) < 1e-11
    with plain_autograd():
        assert relative_error(ours(x, labels), expected[0]) < 1e-11


def _each_image_its_class(ours, weights):
    x, labels, classes = normal(3, 3, 8, 8), torch.tensor([0.3, -0.2, 0.1]).double(), torch.tensor([4, 0, -1])
    found = ours(x, labels, classes)
    for i, label in enumerate((4, 0, None)):
        plain = PlainSong(weights, 8, 2, 1, (4,), ncsnpp=False, label=label)
        assert relative_error(found[i : i + 1], plain(x[i : i + 1], labels[i : i + 1])) < 1e-11


@pytest.mark.parametrize(("kind", "padding"), [("up", 1), ("down", 1), ("down", 0)])
def test_filter_is_its_own_transpose(kind, padding):
    x = normal(1, 2, 6, 6).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda leaf: filtered(leaf, kind, padding), x)
    assert torch.autograd.gradgradcheck(lambda leaf: filtered(leaf, kind, padding).sin(), x)
    constant = torch.ones(1, 1, 8, 8)
    inside = filtered(constant, kind, padding)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.ones_like(inside))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preconditioning": "ve"}, "preconditioning"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"network": {"architecture": "edm"}}, "architecture"),
        ({"network": 7}, "network"),
        ({"cosine_steps": 1}, "cosine_steps"),
    ],
)
def test_impossible_configurations_are_named(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EDMConfig(**{"network": _small("ddpmpp"), **fields})
