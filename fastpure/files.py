"""Writing files so that a crash leaves the old one or the new one, never half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["PARTIAL", "replace_file", "replacing"]

PARTIAL = ".partial"
"""How the hidden temporary files end; one that a killed process left behind may be deleted."""


@contextmanager
def replacing(target: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes ``target`` when the block ends well; folders are made as needed.

    It is written beside ``target`` under a hidden temporary name, flushed to the disk and renamed. If the
    block raises, the temporary file is removed and ``target`` stays as it was.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # temporary files are private to the user
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def replace_file(target: str | Path, content: bytes) -> Path:
    """Write ``content`` to ``target`` as `replacing` does, and return its path."""
    with replacing(target) as file:
        file.write(content)
    return Path(target)
