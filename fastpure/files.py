"""Files that a crash leaves old or new, that a killed command writes on, and that one process at a time writes.

What the operating system says of a file that cannot be written becomes `StoreUnavailable` or `DiskFull` here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, final

import filelock

from .errors import DiskFull, RunLocked, StoreUnavailable

PARTIAL = ".partial"
"""How the hidden temporary files end. `sweep` deletes those of processes that are gone."""

FULL = (errno.ENOSPC, errno.EDQUOT)


def real(path: str | Path) -> Path:
    """Where ``path`` leads, so that two names of one file are one."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise StoreUnavailable(f"{path} cannot be followed to a file: {error}") from error


def unwritable(path: str | Path, error: OSError) -> StoreUnavailable:
    """The exception for ``error`` while ``path`` was written."""
    if error.errno in FULL:
        return DiskFull(
            f"no space left to write {path}. What was finished before is safe: free some space and start the same "
            "again"
        )
    return StoreUnavailable(f"{path} cannot be written: {error.strerror or error}")


@contextmanager
def disk(path: str | Path) -> Iterator[None]:
    """Make an OSError of the block, which does nothing but write ``path``, one of ours."""
    try:
        yield
    except StoreUnavailable:
        raise
    except OSError as error:
        raise unwritable(path, error) from error


@final
class Watched(io.FileIO):
    """A file that remembers why it could not be written: encoders in between raise what they like."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """As ever."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


@contextmanager
def replacing(target: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes ``target`` when the block ends well; folders are made as needed.

    It is written beside ``target`` under a hidden temporary name, flushed to the disk and renamed. If the
    block raises, the temporary file is removed and ``target`` stays as it was. A link stays one.

    Raises:
        StoreUnavailable, DiskFull: the folder cannot be written, or the disk is full.
    """
    path = real(target)
    with disk(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent, os.getpid())
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path.name), suffix=PARTIAL)
    raw = Watched(handle, "wb")
    file = io.BufferedWriter(raw, 1 << 20)
    try:
        yield file
        with disk(target):
            file.flush()
            os.fsync(handle)
            file.close()
            os.chmod(partial, 0o644)  # temporary files are private to the user
            os.replace(partial, path)
    except BaseException as failure:
        with suppress(OSError):
            file.close()  # which flushes once more
        raw.close()
        with suppress(OSError):
            os.unlink(partial)
        if raw.error is not None and isinstance(failure, Exception):
            raise unwritable(target, raw.error) from failure
        raise


def replace_file(target: str | Path, content: bytes) -> Path:
    """Write ``content`` to ``target`` as `replacing` does, and return its path."""
    with replacing(target) as file:
        file.write(content)
    return Path(target)


def partial_name(target: Path) -> Path:
    """A new hidden name beside ``target`` for what a writer of its own will rename to it."""
    return target.with_name(f"{_prefix(target.name)}{os.urandom(4).hex()}{PARTIAL}")


def sync_folder(folder: Path) -> None:
    """See renames in ``folder`` to the disk, where the system lets a program ask for that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _prefix(name: str) -> str:
    """How the temporary files for ``name`` begin: they tell whose they are, by machine and process."""
    if len(os.fsencode(name)) > 180:  # names may have 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}.{_machine()}-{os.getpid()}-"


_LEFTOVER = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-z_]{8}\.partial(?:-journal)?", re.DOTALL)


def sweep(folder: str | Path) -> None:
    """Delete the temporary files that killed processes of this machine left in ``folder``.

    Nothing else is touched: not those of running processes, of other machines, or of other programs.
    """
    with suppress(OSError):  # a folder that cannot be listed or changed has no say in the work to come
        for entry in list(os.scandir(folder)):
            found = _LEFTOVER.fullmatch(entry.name)
            if found and found[1] == _machine() and not _alive(int(found[2])):
                os.unlink(entry.path)


@cache
def _sweep_once(folder: Path, process: int) -> None:
    """Not at every file: a folder of many results would be listed as often."""
    sweep(folder)


@cache
def _machine() -> str:
    """Eight digits for this host and, in a container, its own numbering of processes."""
    numbering = Path("/proc/self/ns/pid")
    own = os.readlink(numbering) if numbering.is_symlink() else ""
    return hashlib.sha256(f"{socket.gethostname()} {own}".encode()).hexdigest()[:8]


def _alive(process: int) -> bool:
    if os.name == "nt":
        return True  # to ask there is to end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


@final
class Unfinished:
    """Several files that one command writes, which may be killed between two of them and given again.

    Until all are there, a hidden note beside the first tells which were written, and their SHA-256: these are the
    command's own and may be replaced without being asked, if nobody changed them since.

    Args:
        first: the file beside which the note lies, the same each time.
    """

    def __init__(self, first: str | Path) -> None:
        place = real(first)
        self.note = place.with_name(f".{place.name}.unfinished")
        self._written: dict[str, str] = {}
        with suppress(OSError, ValueError):
            found = json.loads(self.note.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                self._written = found

    def ours(self, path: str | Path) -> bool:
        """Whether ``path`` is a file that the killed command wrote."""
        digest = self._written.get(str(real(path)))
        return digest is not None and Path(path).is_file() and digest == _digest(Path(path).read_bytes())

    def write(self, path: str | Path, content: bytes) -> Path:
        """As `replace_file`; noted first."""
        self._written[str(real(path))] = _digest(content)
        replace_file(self.note, json.dumps(self._written, indent=1).encode())
        return replace_file(path, content)

    def done(self) -> None:
        """All are there."""
        with disk(self.note):
            self.note.unlink(missing_ok=True)


@contextmanager
def unfinished(paths: Sequence[str | Path], within: Unfinished | None = None) -> Iterator[Unfinished]:
    """``within``, or an `Unfinished` of its own for ``paths``, which is done when the block ends well."""
    batch = within or Unfinished(paths[0])
    yield batch
    if within is None:
        batch.done()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
