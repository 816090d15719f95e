"""`FileLock`: one process at a time writes a file, on every system and file system."""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import final

import filelock

from .errors import RunLocked
from .files import Watched, disk, real

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What file systems say that cannot lock."""


@final
class FileLock:
    """An exclusive lock for writing ``path``, in ``<file>.lock`` beside the file it leads to, which names its holder.

    A lock row inside the file would outlive a killed process; the operating system drops this one. Readers need none.

    File systems without locks (some NFS and Lustre mounts) get a file ``<file>.lock-soft`` instead, which is there
    while the lock is held. One whose process is gone is recognised on the same machine only; of another machine's the
    error says which file to delete. Machines of which only one can lock the common file system do not see each other.

    Raises:
        RunLocked: another process holds it.
        StoreUnavailable, DiskFull: the lock cannot be written; it is not held then.
    """

    def __init__(self, path: Path) -> None:
        place = real(path)
        self.path = place.with_name(f"{place.name}.lock")
        self._lock: filelock.BaseFileLock | None = None
        with disk(path):
            self._acquire(path)

    def release(self) -> None:
        """Give the lock back and remove its file."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if not isinstance(lock, filelock.SoftFileLock):
            # While it is ours, so that it is no successor's. Windows refuses, and filelock does it.
            with suppress(OSError):
                self.path.unlink()
        with suppress(OSError):
            lock.release()

    def _acquire(self, path: Path) -> None:
        if issubclass(filelock.FileLock, filelock.SoftFileLock):  # a Python without locks
            self._lock = self._taken(filelock.SoftFileLock, path)
            return
        try:
            while not self._native(path):
                pass
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            self.path.unlink(missing_ok=True)
            self.path = self.path.with_name(f"{self.path.name}-soft")
            self._lock = self._taken(filelock.SoftFileLock, path)  # which names its holder itself

    def _native(self, path: Path) -> bool:
        """Take the lock and name its holder; False if the last holder removed the file meanwhile."""
        with Watched(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
            lock = self._taken(filelock.FileLock, path)
            try:
                if not self._is(file):
                    lock.release()
                    return False
                file.seek(1)  # Windows locks the first byte, and lets nobody read it
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                file.truncate()
            except BaseException:
                with suppress(OSError):
                    self.path.unlink()
                lock.release()
                raise
            self._lock = lock
            return True

    def _is(self, file: Watched) -> bool:
        """Whether this open file is the one that has the name, and so the one that was locked."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    def _taken(self, kind: type[filelock.BaseFileLock], path: Path) -> filelock.BaseFileLock:
        holder = self._holder()  # before trying: old versions of filelock empty the file as they try
        # Not per thread: who closes a store need not be who opened it.
        lock = kind(self.path, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            remedy = "Wait for it, or stop it"
            if issubclass(kind, filelock.SoftFileLock):
                remedy = (
                    f"Wait for it, or stop it; if it is gone, delete {self.path}: this file system has no locks that "
                    "end with their process"
                )
            raise RunLocked(
                f"{path} is being written by another process ({holder or self._holder() or 'unnamed'}). {remedy}; "
                "nothing was changed"
            ) from error
        return lock

    def _holder(self) -> str:
        """Who holds the lock, as its file says; empty if that cannot be read."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(1 if os.name == "nt" else 0)
                text = (file.read(200) or b"").decode(errors="replace").strip("\0 \n")
        except OSError:
            return ""
        soft = re.match(r"(\d+)\n([^\n]+)", text)
        return f"process {soft[1]} on {soft[2]}" if soft else text
