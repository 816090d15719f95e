"""A run file survives kills, rivals, full disks, other configurations and damage, and says so in one sentence."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import fastpure as fp
from fastpure.errors import DiskFull, RunDamaged, RunLocked, RunMismatch, StoreUnavailable
from fastpure.evaluate.record import ImageRecord, Judged, pack, unpack
from fastpure.evaluate.store import RunStore, Seconds
from fastpure.evaluate.work import Worker
from tests.evaluate.toys import SHAPE, attack, dataset, defense, run_file

N = 12
ONE = {"data": {"n": N, "image_shape": list(SHAPE), "checksum": "c"}, "protocol": {}, "attack": None}


def record(position: int) -> ImageRecord:
    rng = np.random.default_rng(position)
    judged = {
        name: Judged(rng.integers(0, 3, 4), rng.normal(size=4).astype(np.float32))
        for name in ("clean", "adversarial")
    }
    x = rng.random(SHAPE, dtype=np.float32)
    trace = rng.normal(size=3).astype(np.float32)
    return ImageRecord(
        position, 7 + position, position % 3, x, x + 1, 0.1 * position, True, None, trace, judged
    )


def evaluate(out: Path | None, n: int = N, **settings):
    arguments = {"batch_size": 2, "progress": False, **settings}
    return fp.evaluate(defense(), dataset(n), attack(), fp.protocols.fresh(3), out, **arguments)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> fp.Report:
    return evaluate(tmp_path_factory.mktemp("unbroken") / "run.sqlite")


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (0,), (1,)])
def test_arrays_are_packed_exactly(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert np.array_equal(unpack(pack(values), shape), values)
    odd = np.array([np.nan, np.inf, -0.0, 1e-45, 3.4e38], dtype=np.float32)
    assert unpack(pack(odd), (5,)).tobytes() == odd.tobytes()
    smooth = np.full(10000, 0.5, dtype=np.float32)
    assert len(pack(smooth)) < 500


def test_records_come_back_as_written(tmp_path):
    store = RunStore(tmp_path / "r.sqlite", ONE)
    store.write([record(3), record(1)], Seconds(1.0, 2.0, 3.0))
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["r.sqlite"], "no log, lock or temporary file stays"
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        assert run.positions.tolist() == [1, 3]
        assert [r.sha256() for r in run.records()] == [record(1).sha256(), record(3).sha256()]
        assert run.seconds()["attack"] == 2.0
        assert np.array_equal(run.images("adversarial", [3])[0], record(3).x_adv)
        assert np.array_equal(run.predicted("clean")[0], record(1).judged["clean"].predicted)


def test_every_value_enters_the_checksum():
    base = record(5)
    changed = [
        {"position": 6},
        {"sample_id": 0},
        {"label": 0},
        {"x": base.x + 1},
        {"x_adv": None},
        {"distance": 0.6},
        {"zero_gradient": None},
        {"verdict": False},
        {"trace": base.trace[:2]},
        {"judged": {"clean": base.judged["clean"]}},
    ]
    sums = {base.sha256()}
    for change in changed:
        fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
        sums.add(ImageRecord(**{**fields, **change}).sha256())
    assert len(sums) == len(changed) + 1


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


def test_a_hundred_kill_points_leave_the_result_of_an_unbroken_run(memory_folder, monkeypatch, unbroken):
    """Each time the run dies once, somewhere between two statements, without a rollback reaching the file."""
    choose, known, block = random.Random(0), {}, Worker.block

    def remembered(self, positions, tick):  # what is tested here is the file, not the attack
        if tuple(positions) not in known:
            known[tuple(positions)] = block(self, positions, tick)
        return known[tuple(positions)]

    monkeypatch.setattr(Worker, "block", remembered)
    for trial in range(100):
        path = memory_folder / f"{trial}.sqlite"
        n_statements = choose.randrange(0, 90)
        with monkeypatch.context() as patch:
            kill_at(patch, n_statements)
            try:
                evaluate(path, batch_size=4)
                died = False
            except Killed:
                died = True
        assert died or n_statements > 80
        report = evaluate(path, batch_size=4)
        assert report.digest == unbroken.digest, f"killed before statement {n_statements}"
        assert report.n_images == N


KILLED = """
import os, sys
import fastpure as fp
from fastpure.evaluate.store import RunStore
from tests.evaluate.toys import attack, dataset, defense
write, left = RunStore.write, [int(sys.argv[2])]
def dying(self, *arguments):
    write(self, *arguments)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9)
RunStore.write = dying
fp.evaluate(defense(), dataset(12), attack(), fp.protocols.fresh(3), sys.argv[1], batch_size=2, progress=False)
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


def test_a_finished_run_is_only_read(tmp_path, monkeypatch):
    path = tmp_path / "run.sqlite"
    first = evaluate(path)
    monkeypatch.setattr(Worker, "block", None)
    assert evaluate(path).digest == first.digest


def test_another_process_is_kept_out(tmp_path):
    path = tmp_path / "run.sqlite"
    store = RunStore(path, ONE)
    with pytest.raises(RunLocked, match=rf"written by another process \(process {os.getpid()} on "):
        RunStore(path, ONE)
    store.write([record(0)], Seconds())
    with fp.Run.open(path) as run:
        assert run.positions.tolist() == [0], "readers are let in, and see finished blocks"
    store.close()
    RunStore(path, ONE).close()


def test_another_configuration_is_refused_and_named(tmp_path):
    path = tmp_path / "run.sqlite"
    digest = evaluate(path).digest
    with pytest.raises(RunMismatch, match=r"attack\.settings\.eps: 0\.05 -> 0\.06"):
        fp.evaluate(defense(), dataset(N), attack(eps=0.06), fp.protocols.fresh(3), path, progress=False)
    with pytest.raises(RunMismatch, match=r"defense\.seed: 0 -> 1"):
        fp.evaluate(defense(1), dataset(N), attack(), fp.protocols.fresh(3), path, progress=False)
    with pytest.raises(RunMismatch, match=r"data\.checksum"):
        fp.evaluate(defense(), dataset(N, seed=1), attack(), fp.protocols.fresh(3), path, progress=False)
    with pytest.raises(RunMismatch, match=r"protocol\.draws: 3 -> 4"):
        fp.evaluate(defense(), dataset(N), attack(), fp.protocols.fresh(4), path, progress=False)
    with pytest.raises(RunMismatch, match="share"):
        evaluate(path, shard=(1, 2))
    with fp.Run.open(path) as run:
        assert run.content_digest() == digest


def test_changed_weights_are_another_configuration(tmp_path):
    path = tmp_path / "run.sqlite"
    evaluate(path)
    other = defense()
    other.purifier.denoiser.network.means += 0.01
    with pytest.raises(RunMismatch, match=r"defense\.denoiser\.sha256"):
        fp.evaluate(other, dataset(N), attack(), fp.protocols.fresh(3), path, progress=False)


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE draws SET predicted = 1 - predicted WHERE position = 4 AND draw = 1 AND input = 'adversarial'",
        "UPDATE draws SET correct = 1 - correct WHERE position = 4 AND draw = 1 AND input = 'clean'",
        "UPDATE images SET distance = 0.01 WHERE position = 7",
        "UPDATE images SET x_adv = zeroblob(40) WHERE position = 0",
        "DELETE FROM draws WHERE position = 3 AND draw = 2",
        "DELETE FROM images WHERE position = 3",
        "PRAGMA user_version = 99",
        "PRAGMA application_id = 1",
        "DROP TABLE meta",
    ],
)
def test_damage_is_found_before_anything_is_added(tmp_path, spoil):
    path = tmp_path / "run.sqlite"
    evaluate(path)
    connection = sqlite3.connect(path)
    connection.execute(spoil)
    connection.commit()
    connection.close()
    before = path.read_bytes()
    for attempt in (lambda: evaluate(path), lambda: fp.Run.open(path)):
        with pytest.raises(RunDamaged, match=r"run\.sqlite"):
            attempt()
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database, but long enough to look like one " * 20, b"\0" * 5000])
def test_a_foreign_file_is_not_touched(tmp_path, content):
    path = tmp_path / "run.sqlite"
    path.write_bytes(content)
    with pytest.raises(RunDamaged, match="not a readable run file"):
        evaluate(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "run.sqlite"
    evaluate(path)
    path.write_bytes(path.read_bytes()[:-8192])
    with pytest.raises(RunDamaged, match=r"run\.sqlite is (damaged|not a readable run file)"):
        evaluate(path)


def test_a_full_disk_loses_no_finished_block(tmp_path, monkeypatch):
    path, n = tmp_path / "run.sqlite", 40
    store_write = RunStore.write

    def limited(self, *arguments):
        if not self.done:
            pages = self.connection.execute("PRAGMA page_count").fetchone()[0]
            self.connection.execute(f"PRAGMA max_page_count = {pages}")
        store_write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write", limited)
        with pytest.raises(DiskFull, match=r"no space left .* The \d+ finished images are safe"):
            evaluate(path, n, batch_size=8)
    with fp.Run.open(path) as run:
        assert 0 < len(run.positions) < n
    assert evaluate(path, n, batch_size=8).digest == evaluate(None, n, batch_size=8).digest


def test_a_place_that_cannot_be_written_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Worker, "block", None)
    with pytest.raises(StoreUnavailable, match=r"/proc/run\.sqlite cannot be written"):
        evaluate(Path("/proc/run.sqlite"))
    with pytest.raises(StoreUnavailable, match="is a folder"):
        evaluate(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        evaluate(tmp_path / "file" / "run.sqlite")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_read_only_folder_can_be_read_but_not_written():
    """In a child without privileges, because root may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.sqlite"
        digest = evaluate(path).digest
        Path(folder).chmod(0o555)
        try:
            assert unprivileged(path, digest) == 0
        finally:
            Path(folder).chmod(0o755)


def unprivileged(path: Path, digest: str) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            with fp.Run.open(path) as run:
                assert run.content_digest() == digest
            try:
                RunStore(path, ONE)
            except StoreUnavailable as error:
                status = 0 if "cannot be written" in str(error) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run file"):
        fp.Run.open(tmp_path / "none.sqlite")


def test_hand_made_runs_can_be_read_in_memory():
    run = run_file(None, [[0, 1], [0, 0]], [[1, 1], [0, 1]]).read()
    assert run.values("clean").tolist() == [0.5, 1.0]
    assert run.values("adversarial").tolist() == [0.0, 0.5]
