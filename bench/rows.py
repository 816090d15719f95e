"""JSON Lines that several processes append to one after another, any of which may be killed in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add ``row`` as a line of its own, whatever was left behind in the file, and have it written."""
    with path.open("ab+") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All rows in order; lines that a kill cut off are left out."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found
