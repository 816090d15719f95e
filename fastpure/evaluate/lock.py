"""One writer per run file, across processes; the lock dies with its holder, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import final

from ..errors import RunLocked, StoreUnavailable


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
