"""Weights survive a round trip bit by bit; damaged or foreign files are refused with a reason."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastpure import Denoiser, load_denoiser
from fastpure.checkpoints import FORMATS, save_denoiser
from fastpure.errors import CheckpointError
from tests.golden import FOLDER, arrays, config, relative_error
from tests.nets.helpers import normal

SMALL = {"image_size": 8, "channels": 1, "nf": 8, "ch_mult": (1, 2), "n_blocks": 1, "attn_resolutions": (4,)}
TINY = FOLDER / "ddpmpp_tiny.safetensors"


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser.from_config(SMALL, seed=1)


def state(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    return denoiser.network.state_dict()


def test_round_trip_is_bitwise(denoiser, tmp_path):
    path = save_denoiser(denoiser, tmp_path / "new" / "model.safetensors", notes={"training": "none"})
    loaded = load_denoiser(path)
    assert all(torch.equal(value, state(loaded)[name]) for name, value in state(denoiser).items())
    assert list(state(loaded)) == list(state(denoiser))
    assert loaded.network.config == denoiser.network.config
    assert loaded.describe() == denoiser.describe()
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    x, labels = normal(2, 1, 8, 8, dtype=torch.float32), torch.tensor([10.0, 20.0])
    assert torch.equal(loaded(x, labels), denoiser.frozen()(x, labels))  # in training, dropout is on


def test_conventions_are_stored(tmp_path, denoiser):
    other = Denoiser.from_module(denoiser.network, "v", "index", (1, 8, 8))
    loaded = load_denoiser(save_denoiser(other, tmp_path / "model.safetensors"))
    assert (loaded.prediction, loaded.time_input, loaded.image_shape) == ("v", "index", (1, 8, 8))


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2],
)
def test_stored_precision(denoiser, tmp_path, stored, loaded):
    path = save_denoiser(denoiser, tmp_path / "model.safetensors", dtype=stored)
    again = load_denoiser(path)
    for name, value in state(denoiser).items():
        assert state(again)[name].dtype == loaded
        assert torch.equal(state(again)[name], value.to(stored).to(loaded))


def test_half_precision_halves_the_file(denoiser, tmp_path):
    full = save_denoiser(denoiser, tmp_path / "full.safetensors").stat().st_size
    half = save_denoiser(denoiser, tmp_path / "half.safetensors", dtype=torch.float16).stat().st_size
    header = 45_000
    assert half < full / 2 + header


def test_overwriting_is_atomic(denoiser, tmp_path, monkeypatch):
    path = save_denoiser(denoiser, tmp_path / "model.safetensors")
    before = path.read_bytes()

    def fails(*paths):
        raise OSError("disk full")

    other = Denoiser.from_config(SMALL, seed=2)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fails)
        with pytest.raises(OSError, match="disk full"):
            save_denoiser(other, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_notes_cannot_overwrite_the_description(denoiser, tmp_path):
    with pytest.raises(ValueError, match="`notes` must be free of"):
        save_denoiser(denoiser, tmp_path / "model.safetensors", notes={"config": "mine"})


def test_weights_that_overflow_are_not_stored(denoiser, tmp_path):
    with torch.no_grad():
        denoiser.network.all_modules[0].bias.fill_(1e6)
    with pytest.raises(ValueError, match=r"finite in torch.float16.*all_modules.0.bias"):
        save_denoiser(denoiser, tmp_path / "model.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_foreign_networks_cannot_be_stored(tmp_path):
    foreign = Denoiser.from_module(torch.nn.Conv2d(1, 1, 1), image_shape=(1, 8, 8))
    with pytest.raises(TypeError, match="a DDPMpp or ADM or EDM, got Conv2d"):
        save_denoiser(foreign, tmp_path / "model.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -100])
def test_truncated_files(denoiser, tmp_path, keep):
    path = save_denoiser(denoiser, tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_denoiser(path)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_denoiser(path, format="native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("all_modules.2.bias"), r"1 missing: all_modules\.2\.bias"),
        (lambda weights: weights.update(extra=torch.ones(2)), "1 unknown: extra"),
        (
            lambda weights: weights.update({"all_modules.2.bias": torch.ones(9)}),
            r"all_modules\.2\.bias \(expected \[8\], found \[9\]\)",
        ),
        (
            lambda weights: weights.update({"all_modules.2.bias": torch.ones(8, dtype=torch.int64)}),
            r"1 not floating: all_modules\.2\.bias",
        ),
        (
            lambda weights: weights.update({"all_modules.2.bias": torch.full((8,), torch.nan)}),
            r"1 with NaN or Inf: all_modules\.2\.bias",
        ),
        (
            lambda weights: [weights.pop(name) for name in list(weights)[:7]],
            r"7 missing: .*all_modules.1.bias, \.\.\.",
        ),
    ],
)
def test_weights_that_do_not_fit(denoiser, tmp_path, change, message):
    path = save_denoiser(denoiser, tmp_path / "model.safetensors")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "fastpure", "kind": "classifier", "version": "1"}, "found fastpure, classifier, 1"),
        (
            {"format": "fastpure", "kind": "denoiser", "version": "9"},
            "version 1, found fastpure, denoiser, 9",
        ),
        ({"format": "fastpure", "kind": "denoiser", "version": "1"}, "damaged description"),
        (
            {"format": "fastpure", "kind": "denoiser", "version": "1", "architecture": "x", "config": "{}"},
            "`architecture` must be",
        ),
        ({"format": "pt"}, "expected one of the formats native, .*, found 1 tensors: weight"),
    ],
)
def test_foreign_descriptions(tmp_path, metadata, message):
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(tmp_path / "model.safetensors")


def test_missing_files_and_names(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a file nor a bundled denoiser \(bundled: digits,"):
        load_denoiser("digit")
    with pytest.raises(CheckpointError, match="no such file"):
        load_denoiser(tmp_path / "none.safetensors", format="native")
    with pytest.raises(CheckpointError, match="no such file"):
        load_denoiser(tmp_path / "none.pt", format="score_sde", config=config("ddpmpp_tiny"))
    with pytest.raises(CheckpointError, match="no such file"):
        load_denoiser(TINY, format="score_sde", config=tmp_path / "none.json")


def test_arguments():
    with pytest.raises(TypeError, match="`path` must be"):
        load_denoiser(7)
    with pytest.raises(ValueError, match="`format` must be one of 'native', 'score_sde'"):
        load_denoiser(TINY, format="keras")
    with pytest.raises(ValueError, match="`config` must be the configuration"):
        load_denoiser(TINY, format="score_sde")
    with pytest.raises(ValueError, match="`config` must be None"):
        load_denoiser(TINY, format="native", config={})
    assert set(FORMATS) >= {"native", "score_sde"}


@pytest.mark.parametrize("name", ["ddpmpp_tiny", "ddpmpp_ddpmblock_tiny"])
def test_score_sde_safetensors(name):
    loaded = load_denoiser(FOLDER / f"{name}.safetensors", format="score_sde", config=config(name))
    io = {key: torch.from_numpy(value) for key, value in arrays(f"{name}_io").items()}
    assert relative_error(loaded(io["x"], io["t"]), io["out"]) < 5e-6
    assert (loaded.prediction, loaded.time_input, loaded.image_shape) == ("eps", "continuous", (3, 16, 16))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_score_sde_pt_with_prefix(tmp_path):
    """Data-parallel training prefixes every name; ``torch.save`` files load without running code."""
    weights = {f"module.{key}": value for key, value in load_file(TINY).items()}
    torch.save(weights, tmp_path / "model.pt")
    loaded = load_denoiser(tmp_path / "model.pt", format="score_sde", config=config("ddpmpp_tiny")["config"])
    direct = load_denoiser(TINY, format="score_sde", config=FOLDER / "ddpmpp_tiny.json")
    assert all(torch.equal(value, state(direct)[key]) for key, value in state(loaded).items())


class Payload:
    """Pickles as a call: what a malicious file looks like."""

    def __reduce__(self):
        return print, ("code of the file ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable"),
        (b"garbage", "not readable"),
        ({"weight": Payload()}, "not readable"),
        ([torch.ones(1)], "expected tensors by name, found list"),
        ({"model": {"weight": torch.ones(1)}, "step": 3}, "1 tensors, expected 208; 208 missing"),
        ({"net": {"weight": torch.ones(1)}, "step": 3}, "1 unknown: weight"),
    ],
)
def test_unacceptable_pt_files(tmp_path, content, message, capsys):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(path, format="score_sde", config=config("ddpmpp_tiny"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "nf", None, r"model\.nf is missing"),
        ("model", "nf", "16", "`nf` must be"),
        ("model", "nf", 32, "of another shape"),
        ("model", "n_blocks", 2, r"unknown fields model\.n_blocks"),
        ("model", "num_res_blocks", 3, "missing"),
        ("model", "fir", True, r"model\.fir must be False, found True"),
        ("model", "resblock_type", "BigGAN", None),
        ("model", "resblock_type", "other", r"model\.resblock_type must be 'biggan' or 'ddpm'"),
        ("model", "embedding_type", "fourier", r"model\.embedding_type must be 'positional'"),
        ("training", "sde", "vesde", r"training\.sde must be 'vpsde'"),
        ("data", "centered", False, r"data\.centered must be True"),
    ],
)
def test_score_sde_configuration(section, field, value, message):
    settings = json.loads(json.dumps(config("ddpmpp_tiny")["config"]))
    if value is None:
        del settings[section][field]
    else:
        settings[section][field] = value
    if message is None:
        load_denoiser(TINY, format="score_sde", config=settings)
    else:
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(TINY, format="score_sde", config=settings)


def test_discrete_training_means_integer_labels():
    settings = json.loads(json.dumps(config("ddpmpp_tiny")["config"]))
    settings["training"]["continuous"] = False
    assert load_denoiser(TINY, format="score_sde", config=settings).time_input == "index"


def test_configuration_file_must_be_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match="not a readable JSON file"):
        load_denoiser(TINY, format="score_sde", config=path)
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match="expected sections data, model, training, found list"):
        load_denoiser(TINY, format="score_sde", config=path)
