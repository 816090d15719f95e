"""`fastpure train` and `evaluate` on data and networks of one's own, from folders to numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastpure.classifiers import CIFAR_RESNETS, CifarResNet, load_classifier
from fastpure.cli.main import app
from fastpure.cli.options import normalisation
from fastpure.errors import ResumeError
from tests.datasets.test_training import arrays, folder

SMALL = ["--batch-size", "4"]


@pytest.fixture(autouse=True)
def _score_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpure.train.runs.SCORED_IMAGES", 8)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_folder_becomes_a_classifier_that_is_extended_and_evaluated(tmp_path: Path) -> None:
    pictures, out = folder(tmp_path / "pictures", {"cat": 9, "dog": 8}), tmp_path / "run"
    data = ["--data", "folder", "--data-path", str(pictures), "--size", "8"]
    command = ["train", "classifier", *data, "--out", str(out), *SMALL]
    said = _run(*command, "--epochs", "0.5")
    assert "held out" in said
    assert "2 steps into" in said  # half of 16 images in batches of 4
    assert "went on from a run of 2 steps" in _run(*command, "--steps", "3")
    assert json.loads((out / "result.json").read_text())["extended_after_steps"] == [2]
    with pytest.raises(ResumeError, match="steps can only be added"):
        _run(*command, "--epochs", "0.25")
    with pytest.raises(ValueError, match="`--steps` belongs to a command without --epochs"):
        _run(*command, "--epochs", "1", "--steps", "3")
    assert load_classifier(out / "classifier.safetensors").config.classes == 2
    run = tmp_path / "run.sqlite"
    wanted = [*data, "--method", "none", "--attack", "none", "--out", str(run)]
    said = _run("evaluate", *wanted, "--classifier", str(out / "classifier.safetensors"), "--no-progress")
    assert "also those `train` trains on" in said
    assert run.is_file()


def test_arrays_become_a_denoiser(tmp_path: Path) -> None:
    arrays(tmp_path / "data.npz", 12)
    out = tmp_path / "run"
    data = ["--data", "arrays", "--data-path", str(tmp_path / "data.npz")]
    _run("train", "denoiser", *data, "--out", str(out), *SMALL, "--steps", "1")
    assert (out / "denoiser.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classifier", "--data", "folder"], "--data-path"),
        (["classifier", "--data", "digits", "--size", "8"], "`--size` belongs to --data folder and imagenet"),
        (["energy", "--data", "folder"], "`data` must be one of 'digits'"),
        (["addt", "--data", "digit"], "`data` must be one of 'digits'"),
        (["denoiser", "--data", "nothing"], "'digits', 'cifar10', 'folder', 'arrays', 'imagenet'"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _run("train", *arguments, "--out", str(tmp_path / "run"))


def test_fine_tuning_on_own_data_needs_networks(tmp_path: Path) -> None:
    arrays(tmp_path / "data.npz", 12)
    with pytest.raises(ValueError, match="give --start and --classifier"):
        _run(
            "train",
            "addt",
            "--data",
            "arrays",
            "--data-path",
            str(tmp_path / "data.npz"),
            "--out",
            str(tmp_path),
        )


def test_an_architecture_with_weights_and_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastpure.cli.experiment import classifier_options
    from fastpure.cli.options import request

    name = min(CIFAR_RESNETS, key=lambda each: sum(CIFAR_RESNETS[each].blocks))
    torch.manual_seed(0)
    torch.save(CifarResNet(CIFAR_RESNETS[name]).state_dict(), tmp_path / "weights.pt")
    asked = {
        "weights": str(tmp_path / "weights.pt"),
        "normalise": "0.5,0.5,0.5:1/4,0.25,0.25",
        "num_classes": 10,
    }
    wanted = request(classifier=name, **asked)
    network = load_classifier(name, **classifier_options(wanted))
    assert (network.config.mean, network.config.std) == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ValueError, match="`num_classes` must be 10, as"):
        load_classifier(name, weights=tmp_path / "weights.pt", normalise="none", num_classes=7)
    assert normalisation("imagenet") == "imagenet"
    assert normalisation(None) is None
    assert normalisation("125.3/255,1/2:0.25,1e-1") == ((125.3 / 255, 0.5), (0.25, 0.1))
    assert normalisation("0.5,0.5/0.25,0.1") == ((0.5, 0.5), (0.25, 0.1)), "as `doctor` once had it"
    for wrong in ("0.5:x", "a/b", "0.5,0.5", "1/2,1/2/1/4,1/4"):
        with pytest.raises(ValueError, match="`--normalise` must be a name, or numbers"):
            normalisation(wrong)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--classifier", "diffusion:digits", "--weights", "x.pt"],
        ["--preset", "coup-cifar10-linf", "--denoiser", "a", "--classifier", "b", "--num-classes", "3"],
    ],
)
def test_options_that_nothing_reads(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="has no effect with"):
        _run("evaluate", "--n", "2", *arguments)


def test_a_wrong_data_set_is_one_of_the_option() -> None:
    for command in (["evaluate", "--n", "1"], ["certify", "--n", "1", "--draws", "1"]):
        with pytest.raises(ValueError, match=r"`--data` must be one of .* Did you mean digits"):
            _run(*command, "--data", "digitz")


def test_pixels_of_large_folders_lie_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpure.data.mapped.LARGE", 100)
    pictures, out = folder(tmp_path / "pictures", {"cat": 6, "dog": 6}, size=(8, 8)), tmp_path / "run"
    command = ["train", "classifier", "--data", "folder", "--data-path", str(pictures), "--out", str(out)]
    _run(*command, *SMALL, "--steps", "1")
    files = sorted((out / "pixels").iterdir())
    assert [np.load(file, mmap_mode="r").shape[1:] for file in files] == [(3, 8, 8)] * 2
    assert "was finished before" in _run(*command, *SMALL, "--steps", "1")
