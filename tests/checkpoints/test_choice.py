"""Where a file or folder holds several sets of weights: the averaged ones, said in the report, or the one asked for."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastpure import load_classifier, load_denoiser
from fastpure.checkpoints.choice import choose, chosen_tensors, is_averaged, is_raw
from fastpure.classifiers import WideResNet, report_of
from fastpure.errors import CheckpointError
from tests.checkpoints.helpers import SCORE_SDE, SCORE_SDE_CONFIG, state
from tests.checkpoints.pickles import edm_pickle
from tests.classifiers.helpers import WIDE, X, used
from tests.golden import FOLDER, config

T = torch.ones
SETTINGS = {name: config("adm_tiny")[name] for name in ("create_model_kwargs",)}


def adm() -> dict[str, torch.Tensor]:
    return torch.load(FOLDER / "adm_tiny.pt", weights_only=True)


def raw() -> dict[str, torch.Tensor]:
    return {name: value + 1 for name, value in adm().items()}


def same(denoiser, weights) -> bool:
    return all(torch.equal(value, weights[name].float()) for name, value in state(denoiser).items())


def prefixed(prefix: str, weights: dict) -> dict:
    return {prefix + name: value for name, value in weights.items()}


#: Training scripts' ways of keeping both -> what the report says.
BOTH = {
    "timm": (lambda: {"state_dict": raw(), "state_dict_ema": adm(), "epoch": 3}, "averaged (state_dict_ema)"),
    "model_ema": (lambda: {"model": raw(), "model_ema": adm()}, "averaged (model_ema)"),
    "ema": (lambda: {"ema": adm(), "net": raw(), "opt": {"state": {0: {"step": T(1)}}}}, "averaged (ema)"),
    "ema_model": (lambda: {"ema_model": adm(), "model": raw()}, "averaged (ema_model)"),
    "EMA helper": (lambda: {"model": raw(), "ema": {"decay": 0.9, "shadow": adm()}}, "averaged (ema/shadow)"),
    "lightning": (
        lambda: {"state_dict": {**prefixed("model.", raw()), **prefixed("ema_model.", adm())}, "epoch": 1},
        "averaged (state_dict/ema_model)",
    ),
    "lucidrains": (
        lambda: {
            "model": raw(),
            "ema": {
                **prefixed("online_model.", raw()),
                **prefixed("ema_model.", adm()),
                "initted": torch.tensor(True),
                "step": torch.tensor(9),
            },
        },
        "averaged (ema/ema_model)",
    ),
    "data parallel": (
        lambda: {"model": prefixed("module.", raw()), "ema": prefixed("module.", adm())},
        "averaged (ema)",
    ),
    "robust training": (
        lambda: {"model_state_dict": adm(), "unaveraged_model_state_dict": raw(), "epoch": 3},
        "averaged (model_state_dict)",
    ),
    "callback": (
        lambda: {"state_dict": raw(), "callbacks": {"EMA": {"ema_state_dict": adm()}}},
        "averaged (callbacks/EMA/ema_state_dict)",
    ),
}


@pytest.mark.parametrize("name", BOTH)
def test_averaged_weights_are_taken_and_said(tmp_path, name):
    make, said = BOTH[name]
    torch.save(make(), tmp_path / "both.pt")
    denoiser = load_denoiser(tmp_path / "both.pt", config=SETTINGS)
    assert same(denoiser, adm())
    assert denoiser.checkpoint.ema == said
    assert "(raw weights)" in str(denoiser.checkpoint.dropped)
    other = load_denoiser(tmp_path / "both.pt", config=SETTINGS, weights="raw")
    assert same(other, raw())
    assert other.checkpoint.ema.startswith("raw")
    assert same(load_denoiser(tmp_path / "both.pt", config=SETTINGS, weights="ema"), adm())


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lambda: {"ema_0.9999": adm(), "ema_0.999": raw()}, ("ema_0.9999", "ema_0.999")),
        (lambda: {"model": raw(), "net": adm()}, ("net", "model")),
        (lambda: {"teacher": adm(), "model_ema": raw()}, ("teacher", "model_ema")),
        (lambda: {"generator": adm(), "best": raw()}, ("generator", "best")),
    ],
)
def test_what_names_do_not_settle_is_refused_until_told(tmp_path, content, names):
    torch.save(content(), tmp_path / "open.pt")
    with pytest.raises(CheckpointError, match=r"expected one set of weights, found 2.*weights="):
        load_denoiser(tmp_path / "open.pt", config=SETTINGS)
    assert same(load_denoiser(tmp_path / "open.pt", config=SETTINGS, weights=names[0]), adm())
    assert same(load_denoiser(tmp_path / "open.pt", config=SETTINGS, weights=names[1]), raw())
    with pytest.raises(ValueError, match="`weights` must be one of"):
        load_denoiser(tmp_path / "open.pt", config=SETTINGS, weights="other")


def test_one_set_needs_no_choice_and_cannot_be_another():
    path = FOLDER / "adm_tiny.pt"
    assert load_denoiser(path, config=SETTINGS).checkpoint.ema == "as in the file"
    with pytest.raises(ValueError, match="`weights` must be one of 'adm_tiny'"):
        load_denoiser(path, config=SETTINGS, weights="ema")


def test_files_of_openai_say_by_their_names_which_they_are(tmp_path):
    torch.save(adm(), tmp_path / "ema_0.9999_500000.pt")
    torch.save(raw(), tmp_path / "model500000.pt")
    averaged = load_denoiser(tmp_path / "ema_0.9999_500000.pt", config=SETTINGS).checkpoint
    assert averaged.ema == "averaged (ema_0.9999_500000)"
    trained = load_denoiser(tmp_path / "model500000.pt", config=SETTINGS).checkpoint
    assert trained.ema == "raw (model500000)"
    assert "ema_0.9999_500000.pt (averaged weights, a file of their own)" in trained.dropped


def test_torch_s_averaged_model(tmp_path):
    torch.save({"n_averaged": torch.tensor(7), **prefixed("module.", adm())}, tmp_path / "swa.pt")
    denoiser = load_denoiser(tmp_path / "swa.pt", config=SETTINGS)
    assert same(denoiser, adm())
    assert denoiser.checkpoint.ema.startswith("averaged")


def test_score_sde_gives_either():
    content = load_denoiser(SCORE_SDE, config=SCORE_SDE_CONFIG)
    trained = load_denoiser(SCORE_SDE, config=SCORE_SDE_CONFIG, weights="raw")
    assert not torch.equal(*(next(iter(state(one).values())) for one in (content, trained)))
    assert trained.checkpoint.ema == "raw (model)"
    assert "ema (152 averaged weights)" in trained.checkpoint.dropped


def test_edm_pickles(tmp_path):
    path, marker = edm_pickle(tmp_path)
    assert load_denoiser(path).checkpoint.ema == "averaged (ema)"
    with pytest.raises(ValueError, match="`weights` must be one of 'ema'"):
        load_denoiser(path, weights="raw")
    assert not marker.exists()


def test_diffusers_training_folders(tmp_path):
    golden = FOLDER / "diffusers_ddpm_tiny"
    weights = load_file(golden / "diffusion_pytorch_model.safetensors")
    for name, shift in (("unet", 1.0), ("unet_ema", 0.0)):
        (tmp_path / name).mkdir()
        settings = json.loads((golden / "config.json").read_text())
        if name == "unet_ema":
            settings |= {"decay": 0.9999, "optimization_step": 10, "use_ema_warmup": True, "power": 0.75}
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
        moved = {key: value + shift for key, value in weights.items()}
        save_file(moved, tmp_path / name / "diffusion_pytorch_model.safetensors")
    plain = load_denoiser(golden)
    both = load_denoiser(tmp_path)
    assert same(both, state(plain))
    assert both.checkpoint.ema == "averaged (unet_ema)"
    assert "unet (raw weights)" in both.checkpoint.dropped
    trained = load_denoiser(tmp_path, weights="raw")
    assert not same(trained, state(plain))
    assert trained.checkpoint.ema == "raw (unet)"
    shutil.copytree(tmp_path / "unet", tmp_path / "unet_teacher")
    with pytest.raises(CheckpointError, match="expected one set of weights, found 3"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_classifiers_of_timm_s_training_script(tmp_path: Path, prefix: str):
    import argparse

    averaged, trained = used(WideResNet(WIDE), 0), used(WideResNet(WIDE), 1)
    content = {
        "epoch": 3,
        "arch": "wrn",
        "state_dict": prefixed(prefix, trained.state_dict()),
        "state_dict_ema": prefixed(prefix, averaged.state_dict()),
        "optimizer": {"state": {0: {"step": T(1), "exp_avg": T(2)}}, "param_groups": []},
        "args": argparse.Namespace(lr=0.1),
    }
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(content, file)
    loaded = load_classifier(file, normalise="none")
    assert torch.equal(loaded(X), averaged(X))
    assert report_of(loaded).weights == "averaged (state_dict_ema)"
    assert any(text.startswith("state_dict (raw") for text in report_of(loaded).dropped)
    other = load_classifier(file, normalise="none", weights="raw")
    assert torch.equal(other(X), trained(X))
    assert report_of(other).weights == "raw (state_dict)"


def test_words_that_contain_ema_are_not_averages():
    for name in ("ema", "model_ema", "ema_0.9999", "state_dict_ema", "EMA", "swa", "unet_ema", "ema/shadow"):
        assert is_averaged(name)
    for name in ("schema", "remainder", "non_ema", "emancipated", "unet", "model500000"):
        assert not is_averaged(name)
    assert is_raw("non_ema")
    assert not is_raw("")


def test_parts_of_one_network_are_not_taken_apart():
    """A layer may be called "ema": only prefixes with the same names behind them are two sets."""
    names = {"ema.weight": T(1), "conv.bias": T(1), "step": T(1)}
    assert set(chosen_tensors(names, None, "test").value) == set(names)
    assert choose(OrderedDict(a=1), None, "test").said == "as in the file"
