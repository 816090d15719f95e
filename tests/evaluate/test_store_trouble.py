"""Damaged and foreign run files, full disks, places that cannot be written: named, and nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

import fastpure as fp
from fastpure.errors import DiskFull, RunDamaged, StoreUnavailable
from fastpure.evaluate.store import RunStore
from fastpure.evaluate.work import Worker
from tests.evaluate.stored import ONE, evaluate


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
        with pytest.raises(DiskFull, match=r"no space left .* The finished images are safe"):
            evaluate(path, n=n, batch_size=8)
    with fp.Run.open(path) as run:
        assert 0 < len(run.positions) < n
    assert evaluate(path, n=n, batch_size=8).digest == evaluate(None, n=n, batch_size=8).digest


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
