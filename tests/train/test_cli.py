"""`fastpure train`: the two commands end to end, small; and mistakes that are named instead of traced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastpure.checkpoints import load_denoiser
from fastpure.classifiers import load_classifier
from fastpure.cli.train import app
from fastpure.data import load_dataset
from fastpure.errors import ResumeError
from fastpure.train import DENOISER_RECIPES, score_denoiser

SMALL = ["--steps", "3", "--batch-size", "8"]
HELD_OUT = 32


@pytest.fixture(autouse=True)
def _score_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpure.train.runs.SCORED_IMAGES", HELD_OUT)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_classifier_command_trains_exports_and_continues(tmp_path: Path) -> None:
    out = tmp_path / "run"
    output = _run("classifier", "--data", "digits", "--out", str(out), *SMALL)
    assert "test accuracy" in output
    loaded = load_classifier(out / "classifier.safetensors")
    test = load_dataset("digits", "test")
    with torch.no_grad():
        accuracy = (loaded(test.images).argmax(1) == test.labels).float().mean().item()
    result = json.loads((out / "result.json").read_text())
    assert result["held_out"]["accuracy"] == pytest.approx(accuracy)
    assert result["steps"] == 3
    assert "was finished before" in _run("classifier", "--data", "digits", "--out", str(out), *SMALL)
    with pytest.raises(ResumeError, match=r"train\.lr"):
        _run("classifier", "--data", "digits", "--out", str(out), *SMALL, "--lr", "0.5")


def test_denoiser_command_exports_the_averaged_weights(tmp_path: Path) -> None:
    out = tmp_path / "run"
    output = _run("denoiser", "--data", "digits", "--out", str(out), *SMALL, "--t-max", "0.12")
    assert "noise error" in output
    loaded = load_denoiser(out / "denoiser.safetensors")
    average = torch.load(out / "state.pt", weights_only=True)["ema"]
    state = loaded.state_dict()
    assert all(torch.equal(state[name], average[name]) for name in state)
    held_out = json.loads((out / "result.json").read_text())["held_out"]
    assert [score["t"] for score in held_out] == [0.05, 0.1]  # 0.15 and 0.2 lie above t_max
    (score,) = score_denoiser(loaded, load_dataset("digits", "test").subset(HELD_OUT), (0.05,), draws=4)
    assert score.noise_mse == pytest.approx(held_out[0]["noise_mse"])


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        _run("denoiser", "--data", "digits", "--out", str(tmp_path / name), *SMALL, "--seed", seed)
        states.append(load_denoiser(tmp_path / name / "denoiser.safetensors").state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_mistakes_are_named() -> None:
    for arguments, message in (
        (["denoiser", "--data", "mnist"], "`data` must be one of 'digits'"),
        (["denoiser", "--t-max", "2"], "`t_max` must be above"),
        (["classifier", "--data", "cifar10"], "`path` must be given"),
        (["classifier", "--steps", "0"], "`steps` must be an integer >= 1"),
        (["classifier", "--device", "gpu"], "`device` must be cpu, cuda or cuda:N"),
        (["classifier", "--network", "resnet-cifar10"], "`network` must be one for images"),
    ):
        with pytest.raises(ValueError, match=message):
            _run(*arguments, "--out", "/nonexistent")
    assert not Path("/nonexistent").exists()


@pytest.mark.parametrize("command", ["denoiser", "classifier", "addt", "adbm", "trades", "flowpure"])
def test_help_explains_every_option(command: str) -> None:
    output = _run(command, "--help")
    for option in ("--data", "--out", "--steps", "--seed", "--ema", "--accumulate", "--precision", "--clip"):
        assert option in output


def test_bundled_digits_denoiser_removes_noise() -> None:
    """The figures of the zoo's README, with room for another machine's rounding."""
    denoiser = load_denoiser("digits")
    scores = score_denoiser(denoiser, load_dataset("digits", "test").subset(200), (0.1, 0.2))
    assert denoiser.image_shape == (1, 8, 8)
    assert scores[0].noise_mse < 0.25
    assert scores[1].noise_mse < 0.16
    assert DENOISER_RECIPES["digits"].loss.t_max >= 0.2
