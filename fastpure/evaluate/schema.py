"""The tables of a run file, and the statements that fill and read them.

A run is one SQLite file, schema version 1:

==========  ======================================================================================================
table       content
==========  ======================================================================================================
meta        ``identity``: JSON of defence (method, settings, seed, precision, SHA-256 of all weights), attack with
            its settings, protocol, data set with its checksum. ``share``: JSON, which shard this file is.
images      one row per finished image: ``position`` in the data set, ``sample_id``, ``label``, the original ``x``
            and the adversarial ``x_adv`` (exact float32 [C, H, W], `record.pack`), ``distance`` in the attack's
            norm, ``zero_gradient`` (0 or 1: the attack's first gradient was exactly zero), ``verdict`` (0 or 1: the
            attack's own decision, where it carries a published protocol), ``trace`` (the attack's loss at each of
            ``n_trace`` iterates, packed likewise), ``sha256`` of all of it and its draws.
draws       one row per image, input and draw: ``input`` ("clean", "adversarial", "transfer"), ``draw`` 0..K-1,
            ``predicted`` class, ``correct`` 0 or 1, cross-entropy ``loss``.
sessions    one row per start: time, environment (versions, device, threads, SHA-256 of the code), batch sizes.
blocks      one row per transaction: seconds for clean draws, attack, judging; ``store`` is the previous write's.
agreements  one row per image whose attack averaged gradients over draws: how far two halves of the draws agreed
            (``value``, a cosine), and ``sha256`` of that. Files of version 0.1.0 have no such table.
logits      one row per image and input (more where they would not fit into one): the logits of ``n`` draws from
            ``first`` on, float32 [n, classes], ``packed`` likewise, and their ``sha256``. Images of files made
            before this table existed have none.
progress    one row per image whose attack says so: ``correct``, the share of its own draws that were right at each of
            ``n`` points looked at, and ``spent_at``, the gradients spent by then, packed likewise; ``spent``, the
            gradients spent in all; ``sha256`` of all of it.
endings     one row per image whose attack says so: ``remarks``, JSON list of texts, why it ended and what it left out;
            ``sha256`` of that.
checksums   SHA-256 of the rows of ``meta`` (kind "meta", id 0, both together), ``sessions`` ("session") and
            ``blocks`` ("block"), see `checksum`. Files made before this table existed are read without it.
==========  ======================================================================================================

``sessions`` and ``blocks`` tell how a result came about and are no part of it: `Run.content_digest` leaves them
out, and is equal for an unbroken run, a resumed one and merged shards.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DiskFull, FastpureError, RunDamaged, StoreUnavailable
from .record import (
    INPUTS,
    LARGEST,
    Course,
    ImageRecord,
    Judged,
    agreement_sha256,
    ending_sha256,
    logits_sha256,
    pack,
    unpack,
)

APPLICATION_ID = 0x66703031
"""Marks a file as a run of fastpure ("fp01")."""

VERSION = 1
"""Version of the tables; a file of another version is refused, not guessed at."""

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    position INTEGER PRIMARY KEY, sample_id INTEGER NOT NULL UNIQUE, label INTEGER NOT NULL,
    x BLOB NOT NULL, x_adv BLOB, distance REAL, zero_gradient INTEGER, verdict INTEGER,
    n_trace INTEGER NOT NULL, trace BLOB NOT NULL, sha256 BLOB NOT NULL);
CREATE TABLE draws (
    position INTEGER NOT NULL REFERENCES images, input TEXT NOT NULL, draw INTEGER NOT NULL,
    predicted INTEGER NOT NULL, correct INTEGER NOT NULL, loss REAL,
    PRIMARY KEY (position, input, draw)) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, started TEXT NOT NULL, environment TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY, session INTEGER REFERENCES sessions, n INTEGER NOT NULL, first INTEGER NOT NULL,
    clean REAL, attack REAL, judging REAL, store REAL, finished TEXT NOT NULL);
"""


CHECKSUMS = """CREATE TABLE checksums (
    kind TEXT NOT NULL, id INTEGER NOT NULL, sha256 BLOB NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID"""

AGREEMENTS = """CREATE TABLE agreements (
    position INTEGER PRIMARY KEY REFERENCES images, value REAL NOT NULL, sha256 BLOB NOT NULL)"""

LOGITS = """CREATE TABLE logits (
    position INTEGER NOT NULL REFERENCES images, input TEXT NOT NULL, first INTEGER NOT NULL, n INTEGER NOT NULL,
    classes INTEGER NOT NULL, packed BLOB NOT NULL, sha256 BLOB NOT NULL,
    PRIMARY KEY (position, input, first)) WITHOUT ROWID"""

PROGRESS = """CREATE TABLE progress (
    position INTEGER PRIMARY KEY REFERENCES images, n INTEGER NOT NULL, correct BLOB, spent_at BLOB, spent REAL,
    sha256 BLOB NOT NULL)"""

ENDINGS = """CREATE TABLE endings (
    position INTEGER PRIMARY KEY REFERENCES images, remarks TEXT NOT NULL, sha256 BLOB NOT NULL)"""

_LATER = {
    "checksums": CHECKSUMS,
    "agreements": AGREEMENTS,
    "logits": LOGITS,
    "progress": PROGRESS,
    "endings": ENDINGS,
}
"""Came after version 0.1.0; older files get them when they are continued."""

_STATEMENTS = [text.strip() for text in TABLES.split(";") if text.strip()] + list(_LATER.values())
_TABLES = {text.split()[2]: text for text in _STATEMENTS}


def create(connection: sqlite3.Connection, identity: str, share: str) -> None:
    """Make all tables and the meta rows; the caller holds the transaction, so that there is never half a schema."""
    for statement in _STATEMENTS:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.executemany("INSERT INTO meta VALUES (?, ?)", [("identity", identity), ("share", share)])
    seal(connection, "meta", 0, [identity, share])


def foreign_tables(connection: sqlite3.Connection) -> list[str]:
    """What of the schema is not as `create` makes it: a view or trigger would run whatever its author likes."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    wrong = [name for kind, name, sql in rows if kind == "trigger"]
    wrong += [name for kind, name, sql in rows if name in _TABLES and (kind, sql) != ("table", _TABLES[name])]
    missing = _TABLES.keys() - {name for _, name, _ in rows} - _LATER.keys()
    return [*wrong, *sorted(missing)]


def unknown_tables(connection: sqlite3.Connection) -> list[str]:
    """Tables of other names than a run file has: one of its own whose name was damaged."""
    return sorted(tables(connection) - _TABLES.keys())


def checksum(kind: str, values: Sequence[Any]) -> bytes:
    """SHA-256 of a row: of its kind and values as JSON."""
    text = json.dumps([kind, *values], separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def seal(connection: sqlite3.Connection, kind: str, row: int, values: Sequence[Any]) -> None:
    """Keep the checksum of a row; the caller holds the transaction."""
    connection.execute("INSERT INTO checksums VALUES (?, ?, ?)", (kind, row, checksum(kind, values)))


_SEALED = {
    "session": "SELECT id, started, environment, settings FROM sessions",
    "block": "SELECT id, session, n, first, clean, attack, judging, store, finished FROM blocks",
}


def sealed_rows(connection: sqlite3.Connection) -> dict[tuple[str, int], list[Any]]:
    """The values of every row that has a checksum, by kind and id."""
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    rows: dict[tuple[str, int], list[Any]] = {("meta", 0): [meta.get("identity"), meta.get("share")]}
    for kind, query in _SEALED.items():
        rows |= {(kind, row[0]): list(row[1:]) for row in connection.execute(query)}
    return rows


def checksums(connection: sqlite3.Connection) -> dict[tuple[str, int], bytes] | None:
    """The checksums by kind and id; None in a file that is older than they are."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'checksums'").fetchone():
        return None
    return {(kind, row): sha for kind, row, sha in connection.execute("SELECT * FROM checksums")}


def seal_all(connection: sqlite3.Connection) -> None:
    """Give a file of an older version its missing tables and checksums; the caller holds the transaction."""
    found, there = checksums(connection), tables(connection)
    for name, statement in _LATER.items():
        if name not in there:
            connection.execute(statement)
    for (kind, row), values in sealed_rows(connection).items():
        if (kind, row) not in (found or {}):
            seal(connection, kind, row, values)


def add_session(connection: sqlite3.Connection, started: str, environment: str, settings: str) -> int:
    """Add a row of ``sessions``; returns its id."""
    values = [started, environment, settings]
    cursor = connection.execute(
        "INSERT INTO sessions (started, environment, settings) VALUES (?, ?, ?)", values
    )
    seal(connection, "session", row := int(cursor.lastrowid or 0), values)
    return row


def add_block(
    connection: sqlite3.Connection, session: int, n: int, first: int, seconds: Sequence[float], finished: str
) -> None:
    """Add a row of ``blocks``; ``seconds`` are those of clean, attack, judging and store."""
    values = [session, n, first, *(None if value is None else float(value) for value in seconds), finished]
    cursor = connection.execute(
        "INSERT INTO blocks (session, n, first, clean, attack, judging, store, finished) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    seal(connection, "block", int(cursor.lastrowid or 0), values)


def insert(connection: sqlite3.Connection, records: Iterable[ImageRecord]) -> None:
    """Add images and their draws; the caller holds the transaction."""
    for record in records:
        connection.execute(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.position,
                record.sample_id,
                record.label,
                pack(record.x),
                None if record.x_adv is None else pack(record.x_adv),
                record.distance,
                _flag(record.zero_gradient),
                _flag(record.verdict),
                len(record.trace),
                pack(record.trace),
                record.sha256(),
            ),
        )
        connection.executemany("INSERT INTO draws VALUES (?, ?, ?, ?, ?, ?)", _draw_rows(record))
        connection.executemany("INSERT INTO logits VALUES (?, ?, ?, ?, ?, ?, ?)", _logit_rows(record))
        if record.agreement is not None:
            row = (record.position, record.agreement, agreement_sha256(record.position, record.agreement))
            connection.execute("INSERT INTO agreements VALUES (?, ?, ?)", row)
        if record.ending:
            said = (json.dumps(list(record.ending)), ending_sha256(record.position, record.ending))
            connection.execute("INSERT INTO endings VALUES (?, ?, ?)", (record.position, *said))
        if record.course is not None:
            connection.execute(
                "INSERT INTO progress VALUES (?, ?, ?, ?, ?, ?)", _course_row(record, record.course)
            )


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _draw_rows(record: ImageRecord) -> Iterator[tuple[Any, ...]]:
    for name, judged in record.judged.items():
        for draw, (predicted, loss) in enumerate(
            zip(judged.predicted.tolist(), judged.loss.tolist(), strict=True)
        ):
            # SQLite keeps NaN as NULL; an undefined loss is read back as NaN.
            yield record.position, name, draw, predicted, int(predicted == record.label), loss


def _logit_rows(record: ImageRecord) -> Iterator[tuple[Any, ...]]:
    for name, judged in record.judged.items():
        if judged.logits is None:
            continue
        n_classes = judged.logits.shape[1]
        most = max(LARGEST // max(n_classes, 1), 1)  # draws in what is still read back
        for first in range(0, len(judged.logits), most):
            part = judged.logits[first : first + most]
            sha = logits_sha256(record.position, name, first, part)
            yield record.position, name, first, len(part), n_classes, pack(part), sha


def _course_row(record: ImageRecord, course: Course) -> tuple[Any, ...]:
    arrays = [course.correct, course.spent_at]
    packed = [None if array is None else pack(array) for array in arrays]
    n = max((len(array) for array in arrays if array is not None), default=0)
    return record.position, n, *packed, course.spent, course.sha256(record.position)


def read(
    connection: sqlite3.Connection, image_shape: tuple[int, ...]
) -> Iterator[tuple[ImageRecord, bytes, bool]]:
    """Every image in order of position, its stored checksum, and whether its draws' verdicts are consistent.

    Raises:
        ValueError, zlib.error, sqlite3.Error: a value cannot be read.
    """
    rows = connection.execute("SELECT * FROM images ORDER BY position")
    agreed, courses, ended = agreements(connection), _courses(connection), endings(connection)
    with_logits = "logits" in tables(connection)
    for position, sample_id, label, x, x_adv, distance, zero, verdict, n_trace, trace, sha in rows:
        judged, consistent = _judged(connection, position, label, with_logits)
        consistent &= zero in (None, 0, 1) and verdict in (None, 0, 1)
        agreement, own_sha = agreed.get(position, (None, b""))
        if agreement is not None:
            consistent &= own_sha == agreement_sha256(position, agreement)
        course, own_sha = courses.get(position, (None, b""))
        if course is not None:
            consistent &= own_sha == course.sha256(position)
        ending, own_sha = ended.get(position, ((), b""))
        if position in ended:
            consistent &= own_sha == ending_sha256(position, ending)
        record = ImageRecord(
            position=position,
            sample_id=sample_id,
            label=label,
            x=unpack(x, image_shape),
            x_adv=None if x_adv is None else unpack(x_adv, image_shape),
            distance=distance,
            zero_gradient=None if zero is None else bool(zero),
            verdict=None if verdict is None else bool(verdict),
            agreement=agreement,
            trace=unpack(trace, (n_trace,)),
            judged=judged,
            ending=ending,
            course=course,
        )
        yield record, sha, consistent


def tables(connection: sqlite3.Connection) -> set[str]:
    """The names of all tables."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in rows if not str(name).startswith("sqlite_")}


def agreements(connection: sqlite3.Connection) -> dict[int, tuple[float, bytes]]:
    """Agreement and its checksum by position, where they were recorded."""
    if "agreements" not in tables(connection):
        return {}
    rows = connection.execute("SELECT position, value, sha256 FROM agreements")
    return {position: (value, sha256) for position, value, sha256 in rows}


def endings(connection: sqlite3.Connection) -> dict[int, tuple[tuple[str, ...], bytes]]:
    """What attacks said at their end and its checksum by position, where they said something."""
    if "endings" not in tables(connection):
        return {}
    rows = connection.execute("SELECT position, remarks, sha256 FROM endings")
    return {position: (tuple(map(str, json.loads(remarks))), sha256) for position, remarks, sha256 in rows}


def _courses(connection: sqlite3.Connection) -> dict[int, tuple[Course, bytes]]:
    """What is known of each image's attack and its checksum by position."""
    if "progress" not in tables(connection):
        return {}
    found = {}
    for position, n, *packed, spent, sha256 in connection.execute("SELECT * FROM progress"):
        correct, spent_at = (None if blob is None else unpack(blob, (n,)) for blob in packed)
        found[position] = Course(correct, spent_at, spent), sha256
    return found


def read_logits(connection: sqlite3.Connection, position: int, name: str) -> np.ndarray | None:
    """Logits float32 [K, classes] of an image and input, None where they were not kept.

    Raises:
        ValueError: they are not those that were written.
    """
    rows = connection.execute(
        "SELECT first, n, classes, packed, sha256 FROM logits WHERE position = ? AND input = ? ORDER BY first",
        (position, name),
    )
    parts: list[np.ndarray] = []
    for first, n, n_classes, packed, sha256 in rows:
        part = unpack(packed, (n, n_classes))
        if first != sum(map(len, parts)) or sha256 != logits_sha256(position, name, first, part):
            raise ValueError(f"the {name} logits at position {position} are not those written")
        parts.append(part)
    return np.concatenate(parts) if parts else None


def astray(connection: sqlite3.Connection) -> str:
    """Which of the later tables has a row that belongs to nothing; empty if none."""
    there = tables(connection)
    for name, columns, owner in (
        ("agreements", "position", "images"),
        ("progress", "position", "images"),
        ("endings", "position", "images"),
        ("logits", "position, input", "draws"),
    ):
        query = f"SELECT 1 FROM {name} WHERE ({columns}) NOT IN (SELECT {columns} FROM {owner}) LIMIT 1"
        if name in there and connection.execute(query).fetchone():
            return name
    return ""


def _judged(
    connection: sqlite3.Connection, position: int, label: int, with_logits: bool
) -> tuple[dict[str, Judged], bool]:
    rows = connection.execute(
        "SELECT input, draw, predicted, correct, loss FROM draws WHERE position = ? ORDER BY input, draw",
        (position,),
    ).fetchall()
    judged: dict[str, Judged] = {}
    consistent = all(row[3] == int(row[2] == label) for row in rows)
    for name in INPUTS:
        own = [row for row in rows if row[0] == name]
        if own:
            stored = np.array([np.nan if row[4] is None else row[4] for row in own], dtype=np.float64)
            with np.errstate(over="ignore"):
                loss = stored.astype(np.float32)
            logits = read_logits(connection, position, name) if with_logits else None
            judged[name] = Judged(np.array([row[2] for row in own], dtype=np.int64), loss, logits)
            consistent &= logits is None or len(logits) == len(own)
            consistent &= np.array_equal(loss, stored, equal_nan=True)  # the checksum is of 32 bits
            consistent &= [row[1] for row in own] == list(range(len(own)))
    return judged, consistent


def contradiction(connection: sqlite3.Connection) -> str:
    """What contradicts itself outside of the images' own checksums; empty if nothing."""
    report = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if report != "ok":
        return str(report)
    foreign = foreign_tables(connection)
    if foreign:
        return f"its table {foreign[0]} is not as fastpure makes it"
    strange = unknown_tables(connection)
    if strange:
        return f"it holds {', '.join(strange)}"
    count = "SELECT count(*) FROM"
    (orphans,) = connection.execute(
        f"{count} draws WHERE position NOT IN (SELECT position FROM images)"
    ).fetchone()
    if orphans:
        return "draws without image"
    (there,) = connection.execute(f"{count} images").fetchone()
    (noted,) = connection.execute("SELECT coalesce(sum(n), 0) FROM blocks").fetchone()
    if there != noted:
        return f"{noted} images were written, {there} are there"
    if lost := astray(connection):
        return f"{lost} without image"
    stored, rows = checksums(connection) or {}, sealed_rows(connection)
    for (kind, row), sha in stored.items():
        if (kind, row) not in rows or sha != checksum(kind, rows[kind, row]):
            return f"its {kind} {row} is not the one written"
    return ""


READ_ERRORS = (
    sqlite3.Error,
    ValueError,
    zlib.error,
    TypeError,
    OverflowError,
    KeyError,
    struct.error,
    RecursionError,
)
"""What reading a damaged file can raise."""

_OF_THE_DISK = ("unable to open", "readonly", "disk I/O", "locked", "full")


def trouble(error: Exception, path: Path | None, doing: str) -> FastpureError:
    """The exception for what SQLite says while a file is read or written (``doing``).

    Before Python 3.11 its errors have no codes, only words.
    """
    text = str(error)
    if not (isinstance(error, sqlite3.OperationalError) and any(word in text for word in _OF_THE_DISK)):
        return RunDamaged(f"{path} is damaged: {text}")
    if "full" in text or ("disk I/O" in text and doing == "written" and _is_full(path)):
        return DiskFull(
            f"no space left to write {path}. The finished images are safe: free some space and start the same run again"
        )
    beside = [] if path is None else [path.with_name(path.name + end) for end in ("-wal", "-journal")]
    beside = [file for file in beside if file.exists() and file.stat().st_size]
    if doing == "read" and beside:
        return StoreUnavailable(
            f"{path} cannot be read where it is: {text}. {beside[0].name} lies beside it and holds finished images "
            "that are not in it yet; to read them, their folder must be writable. Copy both files to one that is, and "
            "open the copy"
        )
    return StoreUnavailable(f"{path} cannot be {doing}: {text}; nothing was lost")


def _is_full(path: Path | None) -> bool:
    """What SQLite calls an I/O error is a full disk where the log's index has no room."""
    try:
        return path is not None and shutil.disk_usage(path.absolute().parent).free < 1 << 16
    except OSError:
        return False
