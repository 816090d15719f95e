"""The tables of a run file and the statements that fill them.

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
agreements  one row per image whose attack averaged gradients over draws: how far two halves of the draws agreed
            (``value``, a cosine), and ``sha256`` of that. Files of version 0.1.0 have no such table.
blocks      one row per transaction: seconds for clean draws, attack, judging; ``store`` is the previous write's.
==========  ======================================================================================================

``sessions`` and ``blocks`` tell how a result came about and are no part of it: `Run.content_digest` leaves them
out, and is equal for an unbroken run, a resumed one and merged shards.
"""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .record import INPUTS, ImageRecord, Judged, agreement_sha256, pack, unpack

APPLICATION_ID = 0x66703031
"""Marks a file as a run of fastpure ("fp01")."""

VERSION = 1
"""Version of the tables; a file of another version is refused, not guessed at."""

AGREEMENTS = """
CREATE TABLE IF NOT EXISTS agreements (
    position INTEGER PRIMARY KEY REFERENCES images, value REAL NOT NULL, sha256 BLOB NOT NULL)
"""
"""Came after version 0.1.0, whose files get it when they are continued; readers of that version do not look at it."""

TABLES = f"""{AGREEMENTS};
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


KNOWN_TABLES = frozenset(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", TABLES))
"""Nothing else is in a run file: a table of another name is one whose name was damaged."""


def create(connection: sqlite3.Connection, meta: dict[str, str]) -> None:
    """Make all tables and the meta rows in one transaction: there is never half a schema."""
    statements = [text for text in TABLES.split(";") if text.strip()]
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(statement)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", sorted(meta.items()))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


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
        if record.agreement is not None:
            connection.execute(AGREEMENTS)
            row = (record.position, record.agreement, agreement_sha256(record.position, record.agreement))
            connection.execute("INSERT INTO agreements VALUES (?, ?, ?)", row)


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _draw_rows(record: ImageRecord) -> Iterator[tuple[Any, ...]]:
    for name, judged in record.judged.items():
        for draw, (predicted, loss) in enumerate(
            zip(judged.predicted.tolist(), judged.loss.tolist(), strict=True)
        ):
            # SQLite keeps NaN as NULL; an undefined loss is read back as NaN.
            yield record.position, name, draw, predicted, int(predicted == record.label), loss


def read(
    connection: sqlite3.Connection, image_shape: tuple[int, ...]
) -> Iterator[tuple[ImageRecord, bytes, bool]]:
    """Every image in order of position, its stored checksum, and whether its draws' verdicts are consistent.

    Raises:
        ValueError, zlib.error, sqlite3.Error: a value cannot be read.
    """
    rows = connection.execute("SELECT * FROM images ORDER BY position")
    agreed = agreements(connection)
    for position, sample_id, label, x, x_adv, distance, zero, verdict, n_trace, trace, sha in rows:
        judged, consistent = _judged(connection, position, label)
        agreement, own_sha = agreed.get(position, (None, b""))
        if agreement is not None:
            consistent = consistent and own_sha == agreement_sha256(position, agreement)
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


def _judged(connection: sqlite3.Connection, position: int, label: int) -> tuple[dict[str, Judged], bool]:
    rows = connection.execute(
        "SELECT input, draw, predicted, correct, loss FROM draws WHERE position = ? ORDER BY input, draw",
        (position,),
    ).fetchall()
    judged: dict[str, Judged] = {}
    for name in INPUTS:
        own = [row for row in rows if row[0] == name]
        if own:
            loss = np.array([np.nan if row[4] is None else row[4] for row in own], dtype=np.float32)
            judged[name] = Judged(np.array([row[2] for row in own], dtype=np.int64), loss)
    return judged, all(row[3] == int(row[2] == label) for row in rows)


READ_ERRORS = (sqlite3.Error, ValueError, zlib.error, TypeError, OverflowError)
"""What reading a damaged file can raise."""
