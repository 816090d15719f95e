"""The file of a certification: a comment with the configuration, then one row per image. A kill spoils nothing."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

from ..errors import ResumeError
from ..files import disk, replace_file

MARK = "# fastpure certify "


@final
@dataclass(frozen=True)
class Record:
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


NAMES = [field.name for field in fields(Record)]


def read_records(path: str | Path) -> tuple[dict[str, Any], list[Record]]:
    """Configuration and records of a file. A last row that was cut off by a kill is left out.

    Raises:
        ResumeError: not a certification file, or damaged.
    """
    return _parse(Path(path))[:2]


def open_records(path: Path, config: Mapping[str, Any]) -> list[Record]:
    """The records of an earlier session with the same configuration; a new file gets its header.

    Raises:
        ResumeError: the file is something else or belongs to another configuration; it is not touched then.
    """
    wanted = json.loads(json.dumps(config))
    if path.exists():
        saved, records, length = _parse(path)
        changed = [key for key in {**saved, **wanted} if saved.get(key) != wanted.get(key)]
        if changed:
            listed = "; ".join(f"{key}: saved {saved.get(key)}, now {wanted.get(key)}" for key in changed)
            raise ResumeError(f"{path} belongs to another certification; choose another --out. {listed}")
        with disk(path):
            os.truncate(path, length)
        return records
    head = MARK + json.dumps(wanted, sort_keys=True) + "\n" + ",".join(NAMES) + "\n"
    replace_file(path, head.encode())
    return []


def append_record(path: Path, record: Record) -> None:
    """Add one row and see it to disk."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(asdict(record).values())
    with disk(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())


def _parse(path: Path) -> tuple[dict[str, Any], list[Record], int]:
    """Configuration, whole records, and the length in bytes up to the last whole one."""
    try:
        data = path.read_bytes()
        text = data[: data.rfind(b"\n") + 1].decode("utf-8")
        first, header, *lines = text.split("\n")
        if not first.startswith(MARK) or header.split(",") != NAMES:
            raise ValueError("not a file of `fastpure certify`")
        config = json.loads(first.removeprefix(MARK))
        kinds = [int, int, int, float, float, int, float]
        rows = [line.split(",") for line in lines if line]
        records = [Record(*(kind(cell) for kind, cell in zip(kinds, row, strict=True))) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise ResumeError(f"{path} cannot be continued: {error}. Choose another --out") from error
    return config, records, len(text.encode("utf-8"))
