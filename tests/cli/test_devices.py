"""What the options of several devices, trackers and RobustBench's JSON come to."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import fastpure as fp
from fastpure.cli.main import app
from fastpure.cli.train_options import watched
from tests.evaluate import toys

FEW = ["evaluate", "--method", "none", "--n", "2", "--no-progress"]


@pytest.fixture
def asked(monkeypatch) -> dict:
    """What `evaluate` was asked for instead of running."""
    seen: dict = {}

    def run(defense, dataset, attack, rules, path, **settings):
        seen.update(settings, path=path, defense=defense)
        return "the report"

    monkeypatch.setattr(importlib.import_module("fastpure.evaluate"), "evaluate", run)
    return seen


def test_devices_and_tracker_reach_the_run(asked):
    result = CliRunner().invoke(app, [*FEW, "--devices", "cpu, cpu", "--tracker", "wandb"])
    assert result.exit_code == 0, result.output
    assert (asked["devices"], asked["tracker"]) == (["cpu", "cpu"], "wandb")
    assert CliRunner().invoke(app, FEW).exit_code == 0
    assert asked["devices"] is asked["tracker"] is None


def test_mistakes_are_named(asked):
    for words, message in (
        (["--devices", "cpu,tpu7"], "`device` must be cpu, cuda or cuda:N, got 'tpu7'"),
        (
            ["--devices", "cpu", "--device", "meta"],
            "`--device` must be left out with --devices, got meta and cpu",
        ),
    ):
        result = CliRunner().invoke(app, [*FEW, *words])
        assert isinstance(result.exception, ValueError)
        assert message in str(result.exception)


def test_trackers_of_a_training():
    assert watched(None, False) == {"trackers": []}
    assert watched("wandb", True) == {"trackers": ["tensorboard", "wandb"]}


def test_a_run_becomes_robustbenchs_json(tmp_path, monkeypatch):
    plain = toys.dataset
    monkeypatch.setattr(toys, "dataset", lambda n: replace(plain(n), name="cifar10"))
    run, out = tmp_path / "run.sqlite", tmp_path / "Me2026Paper.json"
    toys.run_file(run, [[0, 0]] * 4, [[0, 1]] * 4, attack=fp.attacks.PGD(eps=8 / 255)).close()
    words = ["report", str(run), "--out", str(tmp_path / "page.html"), "--images", "0", "--traced", "0"]
    words += ["--measured", "0", "--robustbench-json", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["external"] == "50.00"
    result = CliRunner().invoke(app, [words[0], str(run), *words[1:]])
    assert "`--robustbench-json` must be given with one run, got 2" in str(result.exception)
