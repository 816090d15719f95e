"""Numbers of trainings and evaluations in TensorBoard and Weights & Biases, where these are installed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import fastpure as fp
from fastpure import trackers
from fastpure.errors import MissingExtra, RunInterrupted
from fastpure.evaluate.runner import tracked_folder
from fastpure.trackers import Tracker, check_tracker
from tests.evaluate import toys


def needed(*packages: str) -> None:
    """Skip where one is missing, unless all are said to be installed."""
    if os.environ.get("FASTPURE_PEERS") != "1":
        for package in packages:
            pytest.importorskip(package)


def scalars(folder):
    """Name -> [(step, value)] of all events in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_accuracies_so_far_survive_an_interruption(tmp_path, monkeypatch):
    needed("tensorboard", "accelerate")
    out = tmp_path / "run.sqlite"
    write, written = toys.RunStore.write, []

    def interrupting(self, *arguments):
        write(self, *arguments)
        written.append(1)
        if len(written) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(toys.RunStore, "write", interrupting)
    with pytest.raises(RunInterrupted):
        toys.evaluate(out, tracker="tensorboard")
    toys.evaluate(out, tracker="tensorboard")
    found = scalars(tmp_path / "run.tracked" / "tensorboard")
    with fp.Run.open(out) as run:
        for which in ("clean", "adversarial"):
            (last,) = found[f"accuracy/{which}"]
            assert last == (8, pytest.approx(float(np.mean(run.values(which))))), "the first four count too"
    assert found["seconds"][0][1] > 0


def test_runs_whose_names_have_points_have_folders_of_their_own():
    names = ("eps0.1", "eps0.2", "eps0", "run.sqlite", "run.sqlite.old")
    folders = [tracked_folder(Path("runs", name)).as_posix() for name in names]
    assert folders == [
        f"runs/{name}.tracked" for name in ("eps0.1", "eps0.2", "eps0", "run", "run.sqlite.old")
    ]


def test_weights_and_biases_continue_one_run(tmp_path, monkeypatch):
    needed("wandb", "accelerate")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    numbers, logged = set(), []
    for step in (0, 4):
        tracker = Tracker("wandb", tmp_path / "run.tracked", step, "this experiment")
        run = tracker._tracker.run
        log = run.log
        monkeypatch.setattr(run, "log", lambda *a, log=log, **k: logged.append((a, k)) or log(*a, **k))
        numbers.add(run.id)
        tracker.log({"accuracy/clean": 0.5, "accuracy/adversarial": None}, step + 4)
        tracker.close()
    assert logged == [(({"accuracy/clean": 0.5},), {"step": step}) for step in (4, 8)]
    assert len(numbers) == 1
    assert list((tmp_path / "run.tracked" / "wandb").glob("offline-run-*"))


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match="`tracker` must be one of 'tensorboard', 'wandb', got 'mlflow'"):
        check_tracker("mlflow")
    with pytest.raises(ValueError, match="`tracker` must be one of"):
        toys.evaluate(None, tracker="mlflow")
    spec = importlib.util.find_spec
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else spec(name)
    )
    with pytest.raises(
        MissingExtra, match=r"--tracker wandb needs the package wandb: pip install 'fastpure\[wandb\]'"
    ):
        check_tracker("wandb")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match="`tracker` must be None without `out`"):
        toys.evaluate(None, tracker="wandb")
