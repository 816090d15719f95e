"""The commands as a user meets them: what they print, what they write, how they refuse."""

from __future__ import annotations

import json
import subprocess
import sys

from typer.testing import CliRunner

from fastpure.cli.main import app


def run(*words: str):
    return CliRunner().invoke(app, list(words))


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
    assert report["kernels"]["ops"]["affine_row"]["cpu"]["float32"]["chosen"] in ("host", "reference")


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
