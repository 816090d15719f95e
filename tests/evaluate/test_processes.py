"""Runs on several devices of one machine: the result of one process, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fastpure as fp
from fastpure.errors import EngineUnavailable
from fastpure.evaluate.numerics import numerics, set_numerics
from fastpure.evaluate.process_engine import checked_devices, process_blocks
from fastpure.evaluate.work import Worker, enter
from tests.evaluate import toys
from tests.evaluate.test_ray import Fatal

TWO = ["cpu", "cpu"]


def evaluate(out, defense=None, n: int = 8, **settings):
    how = fp.protocols.fresh(3)
    settings = {"batch_size": 2, "progress": False, "devices": TWO, **settings}
    return fp.evaluate(defense or toys.defense(), toys.dataset(n), toys.attack(), how, out, **settings)


@pytest.mark.slow
def test_two_processes_find_what_one_finds_even_if_one_is_killed(tmp_path):
    expected = evaluate(tmp_path / "one.sqlite", devices=None)
    target, marker = toys.defense(), tmp_path / "killed"
    target.classifier = Fatal(target.classifier, marker)
    with pytest.warns(RuntimeWarning, match=r"process [12] \(pid \d+, cpu\) was killed by SIGKILL") as said:
        evaluate(tmp_path / "two.sqlite", target)
    assert f"pid {marker.read_text()}," in str(said[0].message), "that one and no other is named"
    with fp.Run.open(tmp_path / "one.sqlite") as one, fp.Run.open(tmp_path / "two.sqlite") as two:
        assert [r.sha256() for r in two.records()] == [r.sha256() for r in one.records()]
        assert one.content_digest() == expected.digest
        (session,) = two.sessions()
        assert session["settings"]["devices"] == TWO


@pytest.mark.slow
def test_a_block_that_kills_every_process_ends_the_run_and_another_engine_continues_it(tmp_path):
    target, out = toys.defense(), tmp_path / "run.sqlite"
    target.classifier = Fatal(target.classifier, None)
    with pytest.warns(RuntimeWarning, match="SIGKILL"), pytest.raises(EngineUnavailable) as stop:
        evaluate(out, target, n=4, devices=["cpu"])
    assert "at positions 0..1, as another one before it" in str(stop.value)
    target.classifier.driver = os.getpid()
    assert evaluate(out, target, n=4, devices=None).n_images == 4, "the run file was left whole"


@pytest.mark.slow
def test_a_mistake_in_a_process_keeps_its_name():
    target = toys.defense()
    target.classifier = Wrong(target.classifier)
    with pytest.raises(ArithmeticError, match="twelve is wrong") as error:
        evaluate(None, target, devices=["cpu"])
    assert "process 1" in str(error.value.__cause__)
    assert "test_processes.py" in str(error.value.__cause__), "where it was raised"


class Wrong(torch.nn.Module):
    """Cannot answer outside of the process it was made in."""

    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.classifier, self.home = classifier, os.getpid()
        self.eval()

    def forward(self, u):
        if os.getpid() != self.home:
            raise ArithmeticError("twelve is wrong")
        return self.classifier(u)


SCRIPT = """
import sys, time
import fastpure as fp
from tests.evaluate import toys
from tests.evaluate.test_processes import Slow

if __name__ == "__main__":
    target = toys.defense()
    target.classifier = Slow(target.classifier, sys.argv[2])
    fp.evaluate(target, toys.dataset(8), toys.attack(), fp.protocols.fresh(3), sys.argv[1], batch_size=2,
                progress=False, devices=["cpu"])
"""


class Slow(torch.nn.Module):
    """Writes down the processes that it answers in."""

    def __init__(self, classifier: torch.nn.Module, folder: str) -> None:
        super().__init__()
        self.classifier, self.folder, self.home = classifier, folder, os.getpid()
        self.eval()

    def forward(self, u):
        if os.getpid() != self.home:
            (Path(self.folder) / str(os.getpid())).touch()
            time.sleep(0.5)
        return self.classifier(u)


@pytest.mark.slow
def test_a_process_ends_with_its_caller(tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "pids"
    folder.mkdir()
    script.write_text(SCRIPT)
    words = [sys.executable, str(script), str(tmp_path / "run.sqlite"), str(folder)]
    root = Path(__file__).resolve().parents[2]
    caller = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(root)}, cwd=tmp_path)
    try:
        until(lambda: len(list(folder.iterdir())) == 1)
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    until(lambda: not any(alive(int(file.name)) for file in folder.iterdir()))


def until(condition) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "in ten minutes"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


OLD = """
torch.set_default_dtype(torch.float64)
torch.set_float32_matmul_precision("medium")
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.enable_flash_sdp(False)
"""
NEW = """
torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "ieee"
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
torch.set_float32_matmul_precision("high")
torch.backends.cuda.matmul.fp32_precision = "ieee"
"""


@pytest.mark.parametrize("settings", [OLD, NEW])
def test_settings_of_arithmetic_can_be_told_and_taken(settings):
    before = numerics()
    try:
        exec(settings)
        told = numerics()
        assert told != before
        set_numerics(before)
        assert numerics() == before
        set_numerics(told)
        assert numerics() == told
    finally:
        set_numerics(before)


@pytest.mark.slow
def test_processes_compute_with_the_arithmetic_of_the_caller():
    """Through the pool and its `_serve`: one that answers only where the caller's settings hold."""
    target = toys.defense()
    target.classifier = Exact(target.classifier)
    was = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        assert evaluate(None, target, n=2, devices=["cpu"]).n_images == 2
    finally:
        torch.backends.cudnn.deterministic = was


class Exact(torch.nn.Module):
    """Wants deterministic kernels."""

    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.eval()

    def forward(self, u):
        assert torch.backends.cudnn.deterministic
        return self.classifier(u)


def test_no_process_is_started_for_nothing():
    target = enter(toys.defense(), toys.dataset(2), toys.FRESH)
    worker = Worker(target, toys.dataset(2), None, toys.FRESH)
    assert list(process_blocks(TWO)(worker, [], lambda n, iteration: None)) == []


def test_mistakes_are_named():
    cpu = torch.device("cpu")
    assert checked_devices(("cpu", "cpu"), cpu) == ("cpu", "cpu")
    for devices, message in (
        ([], "at least one device, got none"),
        (["gpu7"], "cpu, cuda or cuda:N each, got 'gpu7'"),
        (["cpu", "cuda:1"], "cpu like the defence's, got 'cuda:1'"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_devices(devices, cpu)
    with pytest.raises(TypeError, match="a list of devices, got 'cpu,cpu'"):
        checked_devices("cpu,cpu", cpu)
    with pytest.raises(ValueError, match="`devices` must be None with engine='ray'"):
        evaluate(None, engine="ray")
    unsendable = toys.defense()
    unsendable.classifier.extra = lambda u: u
    with pytest.raises(ValueError, match="`defense` must be one that can be sent to other processes"):
        evaluate(None, unsendable)
