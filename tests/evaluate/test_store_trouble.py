"""Damaged and foreign run files, full disks, places that cannot be written: named, and nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

import fastpure as fp
from fastpure.errors import DiskFull, RunDamaged, RunLocked, StoreUnavailable
from fastpure.evaluate.store import RunStore, Seconds
from fastpure.evaluate.work import Worker
from tests.evaluate.stored import ONE, evaluate, record


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


def test_a_name_that_sqlite_keeps_nowhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Worker, "block", None)
    for out in (":memory:", Path(":memory:")):
        with pytest.raises(ValueError, match=r"`out` must be the name of a file, got ':memory:'"):
            evaluate(out)
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_run_file_is_the_run_file(tmp_path):
    path, link = tmp_path / "folder" / "run.sqlite", tmp_path / "link.sqlite"
    path.parent.mkdir()
    link.symlink_to(path)
    store = RunStore(link, ONE)
    with pytest.raises(RunLocked, match=f"process {os.getpid()} on"):
        RunStore(path, ONE)
    store.write([record(0)], Seconds())
    for name in (path, link):
        with fp.Run.open(name) as run:
            assert run.positions.tolist() == [0], "the log lies beside the file, not beside the link"
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["run.sqlite"]


def test_a_second_name_of_a_file_is_refused(tmp_path):
    path, other = tmp_path / "run.sqlite", tmp_path / "other.sqlite"
    evaluate(path)
    other.hardlink_to(path)
    for name in (path, other):
        with pytest.raises(StoreUnavailable, match="has 2 names"):
            evaluate(name)
    other.unlink()
    evaluate(path)


def test_a_reader_that_stays_does_not_keep_the_run_in_its_log(tmp_path):
    path, copy = tmp_path / "run.sqlite", tmp_path / "elsewhere" / "run.sqlite"
    copy.parent.mkdir()
    store = RunStore(path, ONE)
    store.write([record(0)], Seconds())
    with fp.Run.open(path):
        store.write([record(1)], Seconds())
        assert store.close() == ""
        copy.write_bytes(path.read_bytes())
        with fp.Run.open(copy) as run:
            assert run.positions.tolist() == [0, 1]
    with fp.Run.open(path) as run:
        assert run.positions.tolist() == [0, 1]


def test_a_reader_in_the_middle_of_reading_is_said(tmp_path):
    path = tmp_path / "run.sqlite"
    store = RunStore(path, ONE)
    store.write([record(0)], Seconds())
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM images").fetchall()
    store.write([record(1)], Seconds())
    remark = store.close()
    assert "newest images are in" in remark
    assert "run.sqlite-wal" in remark
    assert "another program is reading" in remark
    reader.close()
    store = RunStore(path, ONE)
    assert store.done == {0, 1}
    assert store.close() == ""
    assert [file.name for file in tmp_path.iterdir()] == ["run.sqlite"]


def test_evaluate_says_what_closing_said(tmp_path, monkeypatch):
    close = RunStore.close
    monkeypatch.setattr(RunStore, "close", lambda self: close(self) or "keep both files")
    with pytest.warns(UserWarning, match="keep both files"):
        evaluate(tmp_path / "run.sqlite")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_log_on_read_only_media_is_named_with_what_to_do():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.sqlite"
        if (child := os.fork()) == 0:
            store = RunStore(path, ONE)
            store.write([record(0)], Seconds())
            os._exit(0)  # as if killed: the log stays
        os.waitpid(child, 0)
        path.with_name("run.sqlite-shm").unlink()
        path.with_name("run.sqlite.lock").unlink()
        Path(folder).chmod(0o555)
        try:
            if (child := os.fork()) == 0:
                status = 1
                try:
                    if os.geteuid() == 0:
                        os.setuid(65534)
                    fp.Run.open(path)
                except StoreUnavailable as error:
                    words = ("run.sqlite-wal lies beside it", "Copy both files")
                    status = 0 if all(word in str(error) for word in words) else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            Path(folder).chmod(0o755)
        with fp.Run.open(path) as run:
            assert run.positions.tolist() == [0]


def test_a_kill_while_the_log_was_folded_is_put_back(tmp_path):
    """What SQLite leaves then is a journal with the pages as they were."""
    path = tmp_path / "run.sqlite"
    digest = evaluate(path).digest
    if (child := os.fork()) == 0:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute(
            "UPDATE images SET x = zeroblob(20000)"
        )  # too much for the cache: it reaches the file
        os._exit(0)
    os.waitpid(child, 0)
    assert path.with_name("run.sqlite-journal").stat().st_size
    with fp.Run.open(path) as run:
        assert run.content_digest() == digest
    assert evaluate(path).digest == digest


def test_whatever_sqlite_says_is_ours(tmp_path):
    path = tmp_path / "run.sqlite"
    evaluate(path)
    with fp.Run.open(path) as run:
        pass
    for ask in (
        lambda: run.traces(),
        lambda: run.seconds(),
        lambda: run.images("clean"),
        lambda: run.sessions(),
    ):
        with pytest.raises(ValueError, match="the run is closed"):
            ask()
    holder = sqlite3.connect(path, isolation_level=None, timeout=0)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable, match="locked"):
        RunStore(path, ONE)
    holder.close()
