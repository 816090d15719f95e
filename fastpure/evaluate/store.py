"""Writing a run file: one transaction per finished block, one writer, nothing lost whatever happens."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, final

from ..errors import RunMismatch, StoreUnavailable, mistake
from ..files import FileLock, disk, real
from ..purify.description import other_answers
from .identity import canonical, differences
from .record import ImageRecord
from .run import Run, read_meta
from .schema import add_block, add_session, create, insert, seal_all, trouble

WHOLE = {"index": 1, "of": 1, "unit": 0}
"""The share of a run that is not divided."""


@final
@dataclass(frozen=True)
class Seconds:
    """Where a block's time went: judging the originals, attacking, judging what came out."""

    clean: float = 0.0
    attack: float = 0.0
    judging: float = 0.0


@final
class RunStore:
    """The only writer of a run file.

    While it is written, the file has a write-ahead log beside it, which must be on the same machine as its readers;
    once closed it is a single file that can be read from anywhere, network drives included.

    Args:
        path: the file; None keeps the run in memory.
        identity: of the run. An existing file must have the same.
        share: which part of the run this file holds, see `shards`.
        environment, settings: of this session, recorded with it.
        named: False for a file that nobody knows before it is whole, and that its writer then renames: it needs no
            lock and no log beside it.

    Raises:
        RunMismatch: the file holds another run; nothing is changed.
        RunDamaged: the file is not a run, or its content contradicts its checksums; nothing is changed.
        RunLocked: another process writes it.
        StoreUnavailable, DiskFull: the file cannot be written.
    """

    def __init__(
        self,
        path: Path | None,
        identity: Mapping[str, Any],
        *,
        share: Mapping[str, int] | None = None,
        environment: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        named: bool = True,
    ) -> None:
        self.path = path
        self.identity = dict(identity)
        self.answers = dict((environment or {}).get("answers", {}))
        self.share = dict(share or WHOLE)
        self._logged = path is not None and named
        self.lock = claim(path) if path is not None and named else None
        self._seconds = 0.0
        try:
            self.connection = self._connect()
            self.done = self._prepare()
            with self._guarded():
                self.session = self._note_session(environment or {}, settings or {})
        except BaseException:
            self._release()
            raise

    def write(self, records: Sequence[ImageRecord], seconds: Seconds) -> None:
        """Add a finished block in one transaction; after a crash it is there as a whole or not at all.

        Raises:
            DiskFull, StoreUnavailable: nothing of the block was kept, everything before it was.
        """
        begin = time.perf_counter()
        with self._guarded(), self._transaction():
            insert(self.connection, records)
            # The time of a write is known after it: each block carries that of the one before.
            took = (seconds.clean, seconds.attack, seconds.judging, self._seconds)
            add_block(self.connection, self.session, len(records), records[0].position, took, _now())
        self.done.update(record.position for record in records)
        self._seconds = time.perf_counter() - begin

    def copy_from(self, runs: Sequence[Run]) -> None:
        """Add all images of finished ``runs``, with their sessions and timings, in one transaction."""
        with self._guarded(), self._transaction():
            for run in runs:
                insert(self.connection, run.records())
                self._copy_history(run)
        self.done = {row[0] for row in self.connection.execute("SELECT position FROM images")}

    def _copy_history(self, run: Run) -> None:
        sessions, blocks = run.history()
        for old, *session in sessions:
            own = add_session(self.connection, *session)
            for block in blocks:
                if block[0] == old:
                    _, n, first, *seconds, finished = block
                    add_block(self.connection, own, n, first, seconds, finished)

    def read(self) -> Run:
        """The run so far, through this connection; valid until `close`."""
        return Run(self.connection, self.path)

    def close(self) -> str:
        """Fold the write-ahead log into the file, so that it can be copied and read anywhere, and let go of it.

        Returns:
            What kept it from being the whole run in one file, and what to do; empty if nothing did. Nothing is lost.
        """
        try:
            return self._fold() if self._logged else ""
        finally:
            self._release()

    def _fold(self) -> str:
        try:
            self.connection.execute("PRAGMA journal_mode = DELETE")
            return ""
        except sqlite3.Error as error:
            reason = error
        try:  # somebody reads: the log stays, but may be emptied
            busy, _, _ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return ""
        except sqlite3.Error as error:
            reason = error
        full = "full" in str(reason)
        return (
            f"{self.path} is not yet the whole run: the newest images are in {self.path}-wal beside it, because "
            f"{'no space is left on the disk' if full else f'another program is reading ({reason})'}. Nothing is lost. "
            f"{'Free some space' if full else 'Close it'} and give the same command again, or keep both files together"
        )

    def _connect(self) -> sqlite3.Connection:
        if self.path is None:
            return sqlite3.connect(":memory:", isolation_level=None)
        with self._guarded():
            return sqlite3.connect(real(self.path), isolation_level=None)

    def _prepare(self) -> set[int]:
        if self.path is not None and self.path.exists() and self.path.stat().st_size > 0:
            self._check_same()
        with self._guarded():
            if self.path is not None:
                self.connection.execute(f"PRAGMA journal_mode = {'WAL' if self._logged else 'MEMORY'}")
                self.connection.execute(f"PRAGMA synchronous = {'FULL' if self._logged else 'OFF'}")
            with self._transaction():
                if not self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    create(self.connection, canonical(self.identity), canonical(self.share))
                else:
                    seal_all(self.connection)
            return {row[0] for row in self.connection.execute("SELECT position FROM images")}

    def _check_same(self) -> None:
        meta = read_meta(self.connection, self.path)
        if meta is None:
            return  # killed before its first transaction: an empty database, ours to begin
        saved = {"identity": meta[0], "share": meta[1]}
        wanted = {"identity": self.identity, "share": self.share}
        changed = [line.removeprefix("identity.") for line in differences(saved, wanted)]
        if changed:
            listed = "\n  ".join(changed[:12])
            if any(line.startswith("attack.block:") for line in changed):
                listed += "\nattack.block is batch_size: the images of a block share the attack's budget"
            raise RunMismatch(
                f"{self.path} holds a run of another configuration; nothing was changed. Choose another `out`, or go "
                f"back to the file's values (file -> now):\n  {listed}"
            )
        run = Run(self.connection, self.path)
        run.verify()
        changed = sorted(
            {
                name
                for session in run.sessions()
                for name in other_answers(session["environment"].get("answers", {}), self.answers)
            }
        )
        if changed:
            raise RunMismatch(
                f"{self.path} holds a run of another defence; nothing was changed. Weights and settings are the "
                f"same, but the {' and the '.join(changed)} now answers otherwise to the same images: an attribute, a "
                "class label or the code has changed since. Choose another `out`, or go back to what it was"
            )

    def _note_session(self, environment: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
        with self._transaction():
            return add_session(
                self.connection, _now(), canonical(dict(environment)), canonical(dict(settings))
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Translate what SQLite says of the disk."""
        try:
            yield
        except sqlite3.Error as error:
            raise trouble(error, self.path, "written") from error

    def _release(self) -> None:
        connection = getattr(self, "connection", None)
        if connection is not None:
            connection.close()
        if self.lock is not None:
            self.lock.release()


def claim(path: Path) -> FileLock:
    """The lock of a run file that is to be written; its folder is made.

    Raises:
        ValueError: not the name of a file.
        RunLocked, StoreUnavailable, DiskFull: see `RunStore`.
    """
    if str(path) == ":memory:":
        remedy = "SQLite would keep it nowhere; for a run in memory leave `out` away"
        raise ValueError(mistake("out", "the name of a file", repr(str(path)), remedy))
    if path.is_dir():
        raise StoreUnavailable(f"{path} is a folder; name a file in it, such as run.sqlite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"{path.parent} cannot be made: {error.strerror}") from error
    with disk(path):
        names = path.stat().st_nlink if path.exists() else 1
    if names > 1:
        raise StoreUnavailable(
            f"{path} has {names} names (hard links), and what is written under one would not be seen under the "
            "others. Copy it to a file of its own, and continue that"
        )
    return FileLock(path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
