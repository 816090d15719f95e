"""`fastpure convert` and `fastpure doctor --denoiser`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import torch
from typer.testing import CliRunner

import fastpure as fp
from fastpure import load_denoiser
from fastpure.cli.main import app
from fastpure.data import load_dataset
from tests.golden import FOLDER

CHECKPOINT, CONFIG = (str(FOLDER / f"score_sde_checkpoint_tiny.{end}") for end in ("pth", "json"))


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_doctor_describes_a_checkpoint():
    result = run("doctor", "--denoiser", CHECKPOINT, "--model-config", CONFIG)
    assert result.exit_code == 0, result.output
    digest = hashlib.sha256(Path(CHECKPOINT).read_bytes()).hexdigest()
    for words in ("score_sde", "20,411", "3x16x16", "continuous", "averaged (ema", "optimizer", digest):
        assert words in result.output
    report = json.loads(run("doctor", "--denoiser", CHECKPOINT, "--model-config", CONFIG, "--json").output)
    assert (report["format"], report["parameters"], report["sha256"]) == ("score_sde", 20_411, digest)


def test_convert_is_bitwise(tmp_path):
    target = tmp_path / "out.safetensors"
    result = run("convert", CHECKPOINT, str(target), "--model-config", CONFIG)
    assert result.exit_code == 0, result.output
    direct, converted = load_denoiser(CHECKPOINT, config=CONFIG), load_denoiser(target)
    theirs = converted.network.state_dict()
    for name, value in direct.network.state_dict().items():
        assert torch.equal(value, theirs[name])
    assert converted.describe() == direct.describe()
    assert "converted_from: score_sde_checkpoint_tiny.pth" in str(converted.checkpoint)
    again = tmp_path / "again.safetensors"
    assert run("convert", str(target), str(again)).exit_code == 0
    assert f"source_sha256: {direct.checkpoint.sha256}" in load_denoiser(again).checkpoint.notes


def test_convert_to_half_precision(tmp_path):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    run("convert", CHECKPOINT, str(full), "--model-config", CONFIG)
    run("convert", CHECKPOINT, str(half), "--model-config", CONFIG, "--dtype", "float16")
    assert half.stat().st_size < 0.6 * full.stat().st_size
    exact, rounded = (load_denoiser(path).network.state_dict() for path in (full, half))
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        assert torch.equal(rounded[name], value.half().float())


def test_convert_stores_a_classifier_in_half_precision(tmp_path):
    """Same decisions, half the size, the notes of its training kept; options of denoisers are refused."""
    from fastpure.checkpoints.weights import read_metadata
    from fastpure.zoo import weights_path

    source, target = weights_path("classifier", "digits"), tmp_path / "half.safetensors"
    assert "written" in run("convert", str(source), str(target), "--dtype", "float16").output
    assert target.stat().st_size < 0.6 * source.stat().st_size
    assert read_metadata(target) == read_metadata(source)
    x = load_dataset("digits", "test").images
    full, half = fp.load_classifier("digits")(x), fp.load_classifier(target)(x)
    assert 0 < (full - half).abs().max() < 0.05
    assert torch.equal(full.argmax(1), half.argmax(1))
    refused = fastpure("convert", str(source), str(tmp_path / "b.safetensors"), "--class-label", "3")
    assert refused.returncode == 2
    assert "`--class-label` must not be given for a classifier" in refused.stderr


def fastpure(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fastpure.cli.main", *words], capture_output=True, text=True, check=False
    )


def test_convert_refuses(tmp_path):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"mine")
    result = fastpure("convert", CHECKPOINT, str(target), "--model-config", CONFIG)
    assert result.returncode == 2
    assert "which exists. Overwrite it with --force" in result.stderr
    assert "Traceback" not in result.stderr
    assert target.read_bytes() == b"mine"
    assert run("convert", CHECKPOINT, str(target), "--model-config", CONFIG, "--force").exit_code == 0
    assert load_denoiser(target).checkpoint.format == "native"
    for words, message in (
        (["out.pt"], "ends in .safetensors"),
        ([str(tmp_path / "x.safetensors"), "--dtype", "int8"], "`--dtype` must be one of"),
        ([str(tmp_path / "x.safetensors"), "--format", "keras"], "`format` must be one of"),
    ):
        result = run("convert", CHECKPOINT, *words, "--model-config", CONFIG)
        assert isinstance(result.exception, ValueError)
        assert message in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_given_again_it_is_done_and_anything_else_is_kept(tmp_path):
    target = tmp_path / "out.safetensors"
    words = ("convert", CHECKPOINT, str(target), "--model-config", CONFIG)
    assert run(*words).exit_code == 0
    before = target.read_bytes()
    again = run(*words)
    assert again.exit_code == 0, "a kill at the very end leaves the same command nothing to do"
    assert "written" in again.output
    assert target.read_bytes() == before
    for refused in ((*words, "--dtype", "float16"), ("convert", "digits-classifier", str(target))):
        assert run(*refused).exit_code != 0
    target.write_bytes(before[:-1] + b"x")
    other = run(*words)
    assert "must be a new file" in str(other.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    assert run(*words, "--force").exit_code == 0
    assert len(target.read_bytes()) == len(before)
