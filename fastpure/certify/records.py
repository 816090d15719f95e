"""The file of a certification: a comment with the configuration, then one row per image. A kill spoils nothing."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, final

from ..errors import ResumeError
from ..files import disk, replace_file
from ..shown import Settings

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Record(Settings):
    """One certified image.

    Fields:
        sample_id, label: of the image.
        predicted: class, -1 for an abstention.
        radius: L2, [0, 1] units.
        p_lower: lower bound of the class's probability.
        votes: of the class, among the n draws.
        seconds: it took.
    """

    sample_id: int
    label: int
    predicted: int
    radius: float
    p_lower: float
    votes: int
    seconds: float

    @property
    def correct(self) -> bool:
        """Whether the class is the true one."""
        return self.predicted == self.label


@final
@dataclass(frozen=True)
class PosteriorRecord(Settings):
    """One image, certified by the mean posterior of a diffusion classifier.

    Fields:
        sample_id, label: of the image.
        predicted: class, -1 for an abstention.
        radius: L2, [0, 1] units.
        p_lower: lower bound of the class's mean posterior.
        p_upper: upper bound of every other class's.
        seconds: it took.
    """

    sample_id: int
    label: int
    predicted: int
    radius: float
    p_lower: float
    p_upper: float
    seconds: float

    @property
    def correct(self) -> bool:
        """Whether the class is the true one."""
        return self.predicted == self.label


NAMES, POSTERIOR_NAMES = ([field.name for field in fields(kind)] for kind in (Record, PosteriorRecord))
KINDS: list[Any] = [int, int, int, float, float, int, float]
POSTERIOR_KINDS: list[Any] = [int, int, int, float, float, float, float]


def _record(cells: list[str]) -> Record:
    return Record(*(kind(cell) for kind, cell in zip(KINDS, cells, strict=True)))


def _posterior(cells: list[str]) -> PosteriorRecord:
    return PosteriorRecord(*(kind(cell) for kind, cell in zip(POSTERIOR_KINDS, cells, strict=True)))


@final
@dataclass(frozen=True)
class RowFile(Generic[T]):
    """A kind of file: what its first line begins with, its columns, and what a row of text means.

    Attributes:
        mark: of the first line, which goes on with the configuration as JSON.
        names: of the columns.
        row: the cells of a line as a value; raises ValueError for what is none.
    """

    mark: str
    names: list[str]
    row: Callable[[list[str]], T]

    def read(self, path: Path) -> tuple[dict[str, Any], list[T], int]:
        """Configuration, whole rows, and the length in bytes up to the last whole one.

        Raises:
            ResumeError: a file of another kind, or damaged.
        """
        try:
            data = path.read_bytes()
            text = data[: data.rfind(b"\n") + 1].decode("utf-8")
            first, header, *lines = text.split("\n")
            if not first.startswith(self.mark) or header.split(",") != self.names:
                raise ValueError(f"not a file of `{self.mark.strip('# ')}`")
            config = json.loads(first.removeprefix(self.mark))
            rows = [self.row(line.split(",")) for line in lines if line]
        except (OSError, ValueError, TypeError) as error:
            raise ResumeError(f"{path} cannot be continued: {error}. Choose another --out") from error
        return config, rows, len(text.encode("utf-8"))

    def open(self, path: Path, config: Mapping[str, Any]) -> list[T]:
        """The rows of an earlier session with the same configuration; a new file gets its header.

        Raises:
            ResumeError: the file is something else or belongs to another configuration; it is not touched then.
        """
        wanted = json.loads(json.dumps(config))
        if path.exists():
            saved, rows, length = self.read(path)
            changed = [key for key in {**saved, **wanted} if saved.get(key) != wanted.get(key)]
            if changed:
                listed = "; ".join(f"{key}: saved {saved.get(key)}, now {wanted.get(key)}" for key in changed)
                raise ResumeError(f"{path} belongs to another certification; choose another --out. {listed}")
            with disk(path):
                os.truncate(path, length)
            return rows
        head = self.mark + json.dumps(wanted, sort_keys=True) + "\n" + ",".join(self.names) + "\n"
        replace_file(path, head.encode())
        return []


RECORDS = RowFile("# fastpure certify ", NAMES, _record)
POSTERIORS = RowFile("# fastpure certify posteriors ", POSTERIOR_NAMES, _posterior)


def read_records(path: str | Path) -> tuple[dict[str, Any], list[Record]]:
    """Configuration and records of a file. A last row that was cut off by a kill is left out.

    Raises:
        ResumeError: not a certification file, or damaged.
    """
    return RECORDS.read(Path(path))[:2]


def append_row(path: Path, cells: Iterable[object]) -> None:
    """Add one row and see it to disk."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    with disk(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
