"""Writing a run file: one transaction per finished block, one writer, nothing lost whatever happens."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, final

from ..errors import DiskFull, RunDamaged, RunMismatch, StoreUnavailable
from ..files import FileLock
from .identity import canonical, differences
from .record import ImageRecord
from .run import Run, read_meta
from .schema import create, insert

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
    ) -> None:
        self.path = path
        self.identity = dict(identity)
        self.share = dict(share or WHOLE)
        self.lock = self._claim() if path is not None else None
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
            row = (self.session, len(records), records[0].position, seconds.clean, seconds.attack)
            # The time of a write is known after it: each block carries that of the one before.
            self.connection.execute(
                "INSERT INTO blocks (session, n, first, clean, attack, judging, store, finished) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, seconds.judging, self._seconds, _now()),
            )
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
            cursor = self.connection.execute(
                "INSERT INTO sessions (started, environment, settings) VALUES (?, ?, ?)", session
            )
            own = [(cursor.lastrowid, *block[1:]) for block in blocks if block[0] == old]
            self.connection.executemany(
                "INSERT INTO blocks (session, n, first, clean, attack, judging, store, finished) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                own,
            )

    def read(self) -> Run:
        """The run so far, through this connection; valid until `close`."""
        return Run(self.connection, self.path)

    def close(self) -> None:
        """Fold the write-ahead log into the file, so that it can be copied and read anywhere, and let go of it."""
        try:
            if self.path is not None:
                self.connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass  # a reader holds the file, or the disk is full: the log beside it stays valid
        finally:
            self._release()

    def _claim(self) -> FileLock:
        assert self.path is not None
        if self.path.is_dir():
            raise StoreUnavailable(f"{self.path} is a folder; name a file in it, such as run.sqlite")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"{self.path.parent} cannot be made: {error.strerror}") from error
        return FileLock(self.path)

    def _connect(self) -> sqlite3.Connection:
        if self.path is None:
            return sqlite3.connect(":memory:", isolation_level=None)
        return sqlite3.connect(self.path, isolation_level=None)

    def _prepare(self) -> set[int]:
        if self.path is not None and self.path.exists() and self.path.stat().st_size > 0:
            self._check_same()
        with self._guarded():
            if self.path is not None:
                self.connection.execute("PRAGMA journal_mode = WAL")
                self.connection.execute("PRAGMA synchronous = FULL")
            if not self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                meta = {"identity": canonical(self.identity), "share": canonical(self.share)}
                create(self.connection, meta)
            return {row[0] for row in self.connection.execute("SELECT position FROM images")}

    def _check_same(self) -> None:
        meta = read_meta(self.connection, self.path)
        if meta is None:
            return  # killed before its first transaction: an empty database, ours to begin
        saved = {"identity": json.loads(meta["identity"]), "share": json.loads(meta["share"])}
        wanted = {"identity": self.identity, "share": self.share}
        changed = [line.removeprefix("identity.") for line in differences(saved, wanted)]
        if changed:
            listed = "\n  ".join(changed[:12])
            raise RunMismatch(
                f"{self.path} holds a run of another configuration; nothing was changed. Choose another `out`, or go "
                f"back to the file's values (file -> now):\n  {listed}"
            )
        Run(self.connection, self.path).verify()

    def _note_session(self, environment: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
        with self._transaction():
            cursor = self.connection.execute(
                "INSERT INTO sessions (started, environment, settings) VALUES (?, ?, ?)",
                (_now(), canonical(dict(environment)), canonical(dict(settings))),
            )
        return int(cursor.lastrowid or 0)

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
        except sqlite3.OperationalError as error:
            text = str(error)
            if "full" in text:
                raise DiskFull(
                    f"no space left to write {self.path}. The {len(getattr(self, 'done', ()))} finished images are "
                    "safe: free some space and start the same run again"
                ) from error
            if "readonly" in text or "unable to open" in text or "disk I/O" in text or "locked" in text:
                raise StoreUnavailable(f"{self.path} cannot be written: {text}; nothing was lost") from error
            raise RunDamaged(f"{self.path}: {text}") from error
        except sqlite3.DatabaseError as error:
            raise RunDamaged(f"{self.path} is damaged: {error}") from error

    def _release(self) -> None:
        connection = getattr(self, "connection", None)
        if connection is not None:
            connection.close()
        if self.lock is not None:
            self.lock.release()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
