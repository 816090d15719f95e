"""Files that a crash leaves old or new, never half written, and that one process at a time writes."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, final

from .errors import RunLocked, StoreUnavailable

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


@final
class FileLock:
    """An exclusive lock on ``<file>.lock`` beside the run file, which names its holder.

    A lock row inside the file would outlive a killed process; the kernel drops this one. Readers need no lock.

    Raises:
        RunLocked: another process holds it.
        StoreUnavailable: the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        while True:
            try:
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise StoreUnavailable(f"{path} cannot be written: {error.strerror or error}") from error
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(self._handle, 200, 0).decode(errors="replace").strip()
                os.close(self._handle)
                raise RunLocked(
                    f"{path} is being written by another process ({holder or 'unnamed'}). Wait for it, or stop it; "
                    "nothing was changed"
                ) from error
            if self._is_current():
                break
            os.close(self._handle)  # its last holder removed the file between our open and our lock
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._handle >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1

    def _is_current(self) -> bool:
        try:
            return os.stat(self.path).st_ino == os.fstat(self._handle).st_ino
        except FileNotFoundError:
            return False
