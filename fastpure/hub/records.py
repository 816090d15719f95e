"""What was fetched, beside it: `fastpure.json` with the source and the checksum of every file.

Publishers name no checksums, so the first download is taken at its word, and whatever lies there afterwards must be it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from ..files import replace_file

RECORD = "fastpure.json"


def write_record(folder: Path, source: str, files: Iterable[str], **more: Any) -> dict[str, Any]:
    """Record the files (relative names) as they are now; returns what was written."""
    record = {
        "source": source,
        **more,
        "recorded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": {name: _described(folder / name) for name in sorted(files)},
    }
    replace_file(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return record


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in ``folder``, or None where there is none.

    Raises:
        DownloadError: it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        files = {str(name): (int(of["bytes"]), str(of["sha256"])) for name, of in record["files"].items()}
        if not files or not isinstance(record["source"], str):
            raise ValueError("it names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{path} cannot be read: {error}. Delete {folder} and download again") from error
    return dict(record)


def check(folder: Path, record: dict[str, Any]) -> None:
    """Raise DownloadError if a file is gone, or is not the one that was recorded."""
    for name, recorded in record["files"].items():
        path = folder / name
        if not path.is_file():
            found = "it is gone"
        elif (now := _described(path)) != recorded:
            found = f"{recorded['bytes']} bytes {recorded['sha256'][:12]} then, {now['bytes']} {now['sha256'][:12]} now"
        else:
            continue
        raise DownloadError(
            f"{path} is not what was downloaded from {record['source']} on {record.get('recorded', 'unknown')}: "
            f"{found}. Delete {folder} and download again"
        )


def sha256(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _described(path: Path) -> dict[str, Any]:
    try:
        return {"bytes": path.stat().st_size, "sha256": sha256(path)}
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error}") from error
