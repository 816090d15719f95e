"""A run that was killed, or cut into other blocks, ends with the result of an unbroken one."""

from __future__ import annotations

import functools
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import fastpure as fp
from fastpure.evaluate.work import Worker
from tests.evaluate import stored
from tests.evaluate.stored import N
from tests.evaluate.toys import telling

# With everything that a file can hold: logits that decide, and an attack that says what it did.
evaluate = functools.partial(stored.evaluate, protocol=fp.protocols.average(3, "softmax"), attack=telling())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> fp.Report:
    return evaluate(tmp_path_factory.mktemp("unbroken") / "run.sqlite")


@pytest.fixture(scope="module")
def said(unbroken) -> list[bytes]:
    return everything(Path(unbroken.path))


def everything(path: Path) -> list[bytes]:
    """What the digest of a run leaves out or takes for granted: what its attack said, and every logit."""
    with fp.Run.open(path) as run:
        arrays = [run.agreements, run.spent, *run.progress(), run.logits("clean"), run.logits("adversarial")]
    return [array.tobytes() for array in arrays]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it on the way."""


def kill_at(monkeypatch, point: int) -> None:
    """Die at the ``point``-th statement that touches the file from now on."""
    left = [point]

    class Connection(sqlite3.Connection):
        def execute(self, *arguments):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return super().execute(*arguments)

        def executemany(self, *arguments):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return super().executemany(*arguments)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, factory=Connection, **k))


@pytest.fixture
def memory_folder(tmp_path):
    """A folder in memory where there is one: two hundred runs with a dozen fsyncs each are slow on a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_hundred_kill_points_leave_the_result_of_an_unbroken_run(
    memory_folder, monkeypatch, unbroken, said
):
    """Each time the run dies once, somewhere between two statements, without a rollback reaching the file."""
    choose, known, block = random.Random(0), {}, Worker.block

    def remembered(self, positions, tick):  # what is tested here is the file, not the attack
        if tuple(positions) not in known:
            known[tuple(positions)] = block(self, positions, tick)
        return known[tuple(positions)]

    monkeypatch.setattr(Worker, "block", remembered)
    for trial in range(100):
        path = memory_folder / f"{trial}.sqlite"
        n_statements = choose.randrange(0, 130)
        with monkeypatch.context() as patch:
            kill_at(patch, n_statements)
            try:
                evaluate(path, batch_size=4)
                died = False
            except Killed:
                died = True
        assert died or n_statements > 120
        report = evaluate(path, batch_size=4)
        assert report.digest == unbroken.digest, f"killed before statement {n_statements}"
        assert report.n_images == N
        assert everything(path) == said


KILLED = """
import os, sys
import fastpure as fp
from fastpure.evaluate.store import RunStore
from tests.evaluate.toys import dataset, defense, telling
write, left = RunStore.write, [int(sys.argv[2])]
def dying(self, *arguments):
    write(self, *arguments)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9)
RunStore.write = dying
how = fp.protocols.average(3, "softmax")
fp.evaluate(defense(), dataset(12), telling(), how, sys.argv[1], batch_size=2, progress=False)
"""


def test_kill_9_and_again(tmp_path, unbroken):
    path = tmp_path / "run.sqlite"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path), "3"], check=False).returncode == -9
    assert (tmp_path / "run.sqlite-wal").exists()
    with fp.Run.open(path) as run:
        assert run.positions.tolist() == list(range(6))
        assert not run.complete
    assert evaluate(path).digest == unbroken.digest
    with fp.Run.open(path) as run:
        assert len(run.sessions()) == 2


def test_blocks_may_have_any_size(tmp_path, unbroken):
    for batch_size in (1, 5, 12, 64):
        assert evaluate(tmp_path / f"{batch_size}.sqlite", batch_size=batch_size).digest == unbroken.digest
    assert evaluate(None).digest == unbroken.digest
