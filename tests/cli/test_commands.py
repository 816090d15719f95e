"""The commands as a user meets them: what they print, what they write, how they refuse."""

from __future__ import annotations

import json
import subprocess
import sys

import matplotlib.image
import pytest
from typer.testing import CliRunner

from fastpure.cli.main import app

TINY = ["--images", "3", "--steps", "2", "--n-iter", "1", "--eot-iter", "1", "--eval-draws", "1"]


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def fastpure(*words: str) -> subprocess.CompletedProcess:
    """The real command in a process of its own, as mistakes are worded there."""
    return subprocess.run(
        [sys.executable, "-m", "fastpure.cli.main", *words], capture_output=True, text=True, check=False
    )


def test_demo_prints_the_table_and_draws_the_picture(tmp_path):
    picture = tmp_path / "picture.png"
    result = run("demo", "--out", str(picture), *TINY)
    assert result.exit_code == 0, result.output
    for name in ("no defence", "DiffPure", "COUP without guidance", "COUP", "COUP, guidance detached"):
        assert name in result.output
    assert "Linf 0.2; 3 digits" in result.output
    image = matplotlib.image.imread(picture)
    assert image.shape[0] > 500
    assert image[..., :3].std() > 0.05, "not a blank page"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"], "no half-written files left"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "0"], "`--images` must be in 1..500, the test images there are, got 0"),
        (["--images", "501"], "`--images` must be in 1..500"),
        (
            ["--out", "/nowhere/demo.png"],
            "must name a file in a folder that can be written, got /nowhere/demo.png",
        ),
        ([*TINY, "--t", "1.5"], "`t` must be a diffusion time in (0, 1], got 1.5"),
        ([*TINY, "--eps", "-0.1"], "`eps` must be a finite number above 0"),
        ([*TINY, "--steps", "0"], "`--steps` must be at least 1, got 0"),
    ],
)
def test_demo_refuses_in_one_sentence(words, message, tmp_path):
    result = fastpure("demo", "--out", str(tmp_path / "x.png"), *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_doctor_says_what_runs_and_why():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for word in ("torch", "extension", "affine_row", "philox_normal", "denoiser digits: 188,769 parameters"):
        assert word in result.output


def test_doctor_as_json():
    report = json.loads(run("doctor", "--json").output)
    assert set(report) == {"environment", "kernels", "execution", "bundled"}
    assert report["execution"]["cpu"]["backend"] == "eager"
    assert "CUDA" in report["execution"]["cpu"]["reason"]
    assert report["kernels"]["ops"]["affine_row"]["cpu"]["float32"]["chosen"] in ("ext", "reference")


def test_doctor_reports_a_forced_back_end_that_cannot_run(monkeypatch):
    result = subprocess.run(
        [sys.executable, "-m", "fastpure.cli.main", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin", "FASTPURE_BACKEND": "triton", "HOME": "/tmp"},
    )
    assert result.returncode == 0, result.stderr
    assert "back end `triton` was asked for, but cannot run" in result.stdout


def test_help_names_every_command():
    text = run("--help").output
    for command in ("demo", "doctor", "train"):
        assert command in text
