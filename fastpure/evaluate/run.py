"""`Run`: a run file opened, verified and read; tables: see `schema`."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from ..attacks import Transfer
from ..errors import RunDamaged, mistake, one_of
from ..files import real
from ..shown import Card, Shown
from .identity import canonical
from .protocol import Protocol
from .record import INPUTS, ImageRecord, unpack
from .schema import (
    APPLICATION_ID,
    READ_ERRORS,
    VERSION,
    checksum,
    checksums,
    contradiction,
    foreign_tables,
    read,
    read_logits,
    trouble,
)
from .words import run_card


@final
class Run(Shown):
    """A finished or unfinished run. Open one with `Run.open`; usable as a context manager.

    Arrays are ordered by position and hold the finished images only.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._connection = connection
        self.path = path
        meta = read_meta(connection, path)
        if meta is None:
            raise RunDamaged(f"{path} holds no run: it was interrupted before it began")
        self.identity, self.share = meta

    @staticmethod
    def open(path: str | Path, *, verify: bool = True) -> Run:
        """Open a run file for reading, also while it is written or in a folder that is read-only.

        Warns of a file from before identities had checksums: there a changed setting would be shown as if measured.

        Raises:
            FileNotFoundError: no such file.
            RunDamaged: not a run file, of another version, or contradicting its checksums (without ``verify`` those
                of the identity only).
            StoreUnavailable: a log beside it, which holds some of its images, cannot be read where it is.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such run file")
        place = real(file)
        name = str(place).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        connection = sqlite3.connect(f"file:{name}?{open_mode(place)}", uri=True, isolation_level=None)
        try:
            run = Run(connection, file)
            if verify:
                run.verify()
            if not run.sealed:
                warnings.warn(
                    f"{file} is from before identities and timings had checksums: were they changed, nobody would "
                    "notice. Its images are verified; the command that made it, given again, adds the checksums",
                    stacklevel=2,
                )
        except BaseException:
            connection.close()
            raise
        return run

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _shown(self) -> Card:
        return run_card(self)

    @property
    def protocol(self) -> Protocol:
        """The protocol of the run."""
        known = Protocol.__dataclass_fields__
        try:
            return Protocol(**{name: v for name, v in self.identity["protocol"].items() if name in known})
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise RunDamaged(f"{self.path} names no protocol that is known here: {error}") from error

    @property
    def n_total(self) -> int:
        """Images of the whole run, all shards included."""
        return int(self.identity["data"]["n"])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.identity["data"]["image_shape"])

    @cached_property
    def sealed(self) -> bool:
        """Whether identity, sessions and timings have checksums too; images always have."""
        try:
            return checksums(self._connection) is not None
        except READ_ERRORS as error:
            raise trouble(error, self.path, "read") from error

    @property
    def complete(self) -> bool:
        """Whether every image of the whole run is here."""
        return len(self.positions) == self.n_total

    @cached_property
    def positions(self) -> np.ndarray:
        """Places in the data set, int64 [n], ascending."""
        return self._column("position", np.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """True classes, int64 [n]."""
        return self._column("label", np.int64)

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """Names of the images, int64 [n]."""
        return self._column("sample_id", np.int64)

    @cached_property
    def distances(self) -> np.ndarray:
        """Distances of the adversarial images, float64 [n]; NaN without attack."""
        return self._column("distance", np.float64)

    @cached_property
    def zero_gradients(self) -> np.ndarray:
        """1.0 where the attack's first gradient was exactly zero, else 0.0, float64 [n]; NaN if it uses none."""
        return self._column("zero_gradient", np.float64)

    @cached_property
    def agreements(self) -> np.ndarray:
        """How far two halves of the attack's draws agree on the gradient, float64 [n]; NaN where not measured."""
        found = dict(self._rows("SELECT position, value FROM agreements") if self._has("agreements") else ())
        return np.array([found.get(p, np.nan) for p in self.positions.tolist()], dtype=np.float64)

    @cached_property
    def verdicts(self) -> np.ndarray:
        """The attack's own decisions, float64 [n], 1.0 for correct; NaN where it took none."""
        return self._column("verdict", np.float64)

    @cached_property
    def spent(self) -> np.ndarray:
        """Gradients of the deployed defence spent on each image (a forward pass counts a half), float64 [n]; NaN where
        the attack does not say.
        """
        found = dict(self._rows("SELECT position, spent FROM progress") if self._has("progress") else ())
        values = [found.get(position) for position in self.positions.tolist()]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    @cached_property
    def endings(self) -> dict[tuple[str, ...], int]:
        """Why the attack ended and what it left out, with the number of images it said so of."""
        found: dict[tuple[str, ...], int] = {}
        for (remarks,) in self._rows("SELECT remarks FROM endings") if self._has("endings") else ():
            said = tuple(json.loads(remarks))
            found[said] = found.get(said, 0) + 1
        return found

    def progress(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of the attack's own draws that were right at each point it looked at, and gradients spent by then.

        Both float32 [n, T], in [0, 1] and as `spent`; NaN where it did not look or does not say.
        """
        query = "SELECT position, n, correct, spent_at FROM progress"
        found = {row[0]: row[1:] for row in (self._rows(query) if self._has("progress") else ())}
        longest = max((n for n, *_ in found.values()), default=0)
        columns = np.full((2, len(self.positions), longest), np.nan, dtype=np.float32)
        for i, position in enumerate(self.positions.tolist()):
            n, *packed = found.get(position, (0, None, None))
            for column, blob in zip(columns, packed, strict=True):
                if blob is not None:
                    column[i, :n] = unpack(blob, (n,))
        return columns[0], columns[1]

    def predicted(self, which: str) -> np.ndarray:
        """Predicted classes int64 [n, K] of an input of `INPUTS`; K = 0 if it was not judged."""
        return self._draws(which, "predicted").astype(np.int64)

    def losses(self, which: str) -> np.ndarray:
        """Cross-entropies float64 [n, K] of an input of `INPUTS`."""
        return self._draws(which, "loss")

    def correct(self, which: str) -> np.ndarray:
        """Whether each draw was right, bool [n, K]."""
        return self.predicted(which) == self.labels[:, None]

    def logits(self, which: str) -> np.ndarray:
        """Logits float32 [n, K, classes] of an input of `INPUTS` on every draw; K = 0 if it was not judged.

        Raises:
            ValueError: the file was begun before logits were kept, and has none of some images.
        """
        one_of("which", which, INPUTS)
        if not self.predicted(which).shape[1]:
            return np.zeros((len(self.positions), 0, len(self.identity["data"]["classes"])), np.float32)
        return np.stack(list(self._each_logits(which)))

    def values(self, which: str, protocol: Protocol | None = None) -> np.ndarray:
        """How far each image counts as correct, float64 [n] in [0, 1], under ``protocol`` (the run's if None).

        Raises:
            ValueError: the records do not suffice for ``protocol``, or no attack was run.
        """
        one_of("which", which, INPUTS)
        rule = self.protocol if protocol is None else self._usable(protocol)
        if which == "transfer":
            return self.correct("transfer").mean(1, dtype=np.float64)
        if not self.predicted(which).shape[1] and len(self.positions):
            raise ValueError(mistake("which", "'clean' for a run without attack", repr(which)))
        if rule.rule == "average":
            return self._averaged(which, rule)
        if which == "clean":
            return rule.clean_values(self.predicted("clean")[:, : rule.draws], self.labels)
        clean, adversarial = (self.predicted(name)[:, : rule.draws] for name in ("clean", "adversarial"))
        return rule.robust_values(clean, adversarial, self.labels, self.verdicts)

    def traces(self) -> np.ndarray:
        """The attack's loss at each iterate, float32 [n, n_iter]; NaN where images had fewer iterates."""
        rows = self._rows("SELECT n_trace, trace FROM images ORDER BY position")
        traces = np.full((len(rows), max((row[0] for row in rows), default=0)), np.nan, dtype=np.float32)
        for i, (length, blob) in enumerate(rows):
            traces[i, :length] = unpack(blob, (length,))
        return traces

    def images(self, which: str, positions: Sequence[int] | None = None) -> np.ndarray:
        """Originals ("clean") or adversarial images float32 [m, C, H, W] at ``positions`` (all if None)."""
        column = {"clean": "x", "adversarial": "x_adv"}[one_of("which", which, ("clean", "adversarial"))]
        found = []
        for position in self.positions.tolist() if positions is None else positions:
            rows = self._rows(f"SELECT {column} FROM images WHERE position = ?", (int(position),))
            if not rows or rows[0][0] is None:
                raise ValueError(mistake("positions", f"of finished images with a {which} one", position))
            found.append(unpack(rows[0][0], self.image_shape))
        return np.stack(found) if found else np.zeros((0, *self.image_shape), np.float32)

    def as_attack(self) -> Transfer:
        """This run's adversarial images as an attack on another defence of the same images.

        Raises:
            ValueError: no attack was run, or one whose budget is no norm.
        """
        attack = self.identity["attack"] or {"name": "no attack", "settings": {}}
        budget = {name: attack["settings"].get(name) for name in ("norm", "eps")}
        if None in budget.values():
            raise ValueError(mistake("run", "one with an attack inside a ball of some norm", attack["name"]))
        found, names = (torch.from_numpy(a) for a in (self.images("adversarial"), self.sample_ids))
        source = self.identity["defense"].get("method", {}).get("name", "none")
        return Transfer(found=found, sample_ids=names, source=source, **budget)

    def sessions(self) -> list[dict[str, Any]]:
        """Every start of the run: time, environment and settings."""
        rows = self._rows("SELECT started, environment, settings FROM sessions ORDER BY id")
        return [
            {"started": r[0], "environment": json.loads(r[1]), "settings": json.loads(r[2])} for r in rows
        ]

    def seconds(self) -> dict[str, float]:
        """Time spent in all sessions, by part."""
        parts = ("clean", "attack", "judging", "store")
        sums = ", ".join(f"coalesce(sum({part}), 0.0)" for part in parts)
        (row,) = self._rows(f"SELECT {sums} FROM blocks")
        return dict(zip(parts, row, strict=True))

    def history(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Rows of ``sessions`` and of ``blocks`` (without their ids), for merging."""
        sessions = self._rows("SELECT id, started, environment, settings FROM sessions ORDER BY id")
        blocks = self._rows(
            "SELECT session, n, first, clean, attack, judging, store, finished FROM blocks ORDER BY id"
        )
        return sessions, blocks

    def records(self) -> Iterator[ImageRecord]:
        """Every finished image, verified against its checksum.

        Raises:
            RunDamaged: a value is unreadable or not the one that was written.
        """
        position, averaged = -1, decided_by_logits(self.identity)
        try:
            for record, sha256, consistent in read(self._connection, self.image_shape):
                position = record.position
                if record.sha256() != sha256 or not consistent:
                    raise RunDamaged(
                        f"{self.path} is damaged: the record at position {position} is not the one written"
                    )
                if averaged and any(judged.logits is None for judged in record.judged.values()):
                    raise RunDamaged(
                        f"{self.path} is damaged: the logits that decide at position {position} are not there"
                    )
                yield record
        except READ_ERRORS as error:
            raise RunDamaged(f"{self.path} is damaged after position {position}: {error}") from error

    def verify(self) -> None:
        """Check the file's structure and every row; RunDamaged says what is wrong."""
        try:
            wrong = contradiction(self._connection)
        except READ_ERRORS as error:
            raise trouble(error, self.path, "read") from error
        if wrong:
            raise RunDamaged(f"{self.path} is damaged: {wrong}")
        for _ in self.records():
            pass

    def content_digest(self) -> str:
        """SHA-256 (hexadecimal) of identity and results; equal runs have equal digests, timings left out."""
        digest = hashlib.sha256(canonical(self.identity).encode())
        for sha256 in self.result_checksums().values():
            digest.update(sha256)
        return digest.hexdigest()

    def result_checksums(self) -> dict[int, bytes]:
        """SHA-256 of every finished image's result by position, ascending: with the logits where they decide."""
        averaged = decided_by_logits(self.identity)
        return {
            record.position: record.decided_sha256() if averaged else record.sha256()
            for record in self.records()
        }

    def _averaged(self, which: str, rule: Protocol) -> np.ndarray:
        """Image by image: all logits of a large data set need not fit into memory."""
        nobody, decided = np.zeros((1, 0), np.int64), np.zeros(len(self.positions))
        for i, logits in enumerate(self._each_logits(which)):
            (decided[i],) = rule.clean_values(nobody, self.labels[i : i + 1], logits[None, : rule.draws])
        return decided

    def _each_logits(self, which: str) -> Iterator[np.ndarray]:
        """Of every image in order."""
        lacking = self._lacking_logits(which)
        if lacking:
            raise ValueError(
                f"{self.path} has no logits for {lacking} of {len(self.positions)} images: it was begun before run "
                "files kept them. Averaged logits need the same evaluation in a new file; all other protocols can "
                "decide this one"
            )
        for position in self.positions.tolist():
            try:
                found = read_logits(self._connection, position, which)
            except READ_ERRORS as error:
                raise trouble(error, self.path, "read") from error
            assert found is not None
            yield found

    def _lacking_logits(self, which: str) -> int:
        query = "SELECT count(DISTINCT position) FROM logits WHERE input = ?"
        there = self._rows(query, (which,))[0][0] if self._has("logits") else 0
        return len(self.positions) - int(there)

    def _has(self, table: str) -> bool:
        """Whether the file has this one of the later tables."""
        return bool(self._rows("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)))

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.ProgrammingError as error:
            raise ValueError(f"{self.path}: the run is closed; open it again") from error
        except READ_ERRORS as error:
            raise trouble(error, self.path, "read") from error

    def _column(self, name: str, dtype: Any) -> np.ndarray:
        rows = self._rows(f"SELECT {name} FROM images ORDER BY position")
        values = [np.nan if row[0] is None else row[0] for row in rows]
        return np.array(values, dtype=dtype)

    def _draws(self, which: str, column: str) -> np.ndarray:
        one_of("which", which, INPUTS)
        rows = self._rows(f"SELECT {column} FROM draws WHERE input = ? ORDER BY position, draw", (which,))
        values = np.array([np.nan if row[0] is None else row[0] for row in rows], dtype=np.float64)
        n = len(self.positions)
        return values.reshape(n, len(values) // n if n else 0)

    def _usable(self, protocol: Protocol) -> Protocol:
        own = self.protocol
        if (own.noise, own.fixed_draw, own.part) != (
            protocol.noise,
            protocol.fixed_draw,
            protocol.part,
        ) or own.draws < protocol.draws:
            single = self.predicted("clean").shape[1] == 1  # nothing random: any number of draws is this one
            if not (single and own.noise == protocol.noise):
                raise ValueError(
                    mistake("protocol", f"one that the records of {own} can decide", f"{protocol}")
                )
        return protocol


def decided_by_logits(identity: Mapping[str, Any]) -> bool:
    """Whether the protocol of an identity, which may be damaged, decides by logits."""
    protocol = identity["protocol"]
    return isinstance(protocol, Mapping) and protocol.get("rule") == "average"


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
