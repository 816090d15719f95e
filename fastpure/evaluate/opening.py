"""Opening a run file: how SQLite is to do it, who the run is, and whether the file contradicts itself."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from ..errors import RunDamaged
from .schema import (
    APPLICATION_ID,
    READ_ERRORS,
    VERSION,
    agreements,
    checksum,
    checksums,
    foreign_tables,
    sealed_rows,
    trouble,
    unknown_tables,
)


def open_mode(place: Path) -> str:
    """How SQLite is to open a file that is only read."""
    log = place.with_name(place.name + "-wal")
    if log.exists() and (log.stat().st_size or os.access(place.parent, os.W_OK)):
        return "mode=ro"
    journal = place.with_name(place.name + "-journal")
    if journal.exists() and journal.stat().st_size:
        return "mode=rw"  # a kill while the log was folded: SQLite must put the file back first
    return "mode=ro&immutable=1"


def read_meta(
    connection: sqlite3.Connection, path: Path | None
) -> tuple[dict[str, Any], dict[str, int]] | None:
    """Identity and share, verified; None for an empty database. RunDamaged for anything that is not a run file."""
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables and not application:
            return None
        if application != APPLICATION_ID:
            raise RunDamaged(f"{path} is an SQLite file, but not a run of fastpure; it was not touched")
        if version != VERSION:
            raise RunDamaged(f"{path} has schema version {version}, this fastpure reads version {VERSION}")
        if foreign := foreign_tables(connection):
            raise RunDamaged(f"{path} is damaged: its table {foreign[0]} is not as fastpure makes it")
        stored = (checksums(connection) or {}).get(("meta", 0))
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        if stored is not None and stored != checksum("meta", [meta.get("identity"), meta.get("share")]):
            raise RunDamaged(
                f"{path} is damaged: its identity, the settings under which it was measured, is not the one written"
            )
        identity, share = json.loads(meta["identity"]), json.loads(meta["share"])
        shape, n = identity["data"]["image_shape"], identity["data"]["n"]
        if not (all(type(side) is int and side > 0 for side in shape) and type(n) is int and n > 0):
            raise ValueError(f"its identity tells of {n} images of shape {shape}")
        if not {"index", "of", "unit"} <= share.keys() or not {"protocol", "attack"} <= identity.keys():
            raise ValueError("its identity lacks a part")
        return identity, share
    except READ_ERRORS as error:
        problem = trouble(error, path, "read")
        if isinstance(problem, RunDamaged):
            problem = RunDamaged(f"{path} is not a readable run file: {error}; it was not touched")
        raise problem from error
    except AttributeError as error:
        raise RunDamaged(
            f"{path} is not a readable run file: its identity is no table of settings"
        ) from error


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
    positions = {row[0] for row in connection.execute("SELECT position FROM images")}
    if agreements(connection).keys() - positions:
        return "agreements without image"
    stored, rows = checksums(connection) or {}, sealed_rows(connection)
    for (kind, row), sha in stored.items():
        if (kind, row) not in rows or sha != checksum(kind, rows[kind, row]):
            return f"its {kind} {row} is not the one written"
    return ""
