"""Files that others made: opened only if they are regular, and believed only as far as their size goes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError

SPARE = 2**28
"""Bytes that a file of any size may ask for; beyond them, four times what the file itself holds."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | Path, expected: str = "") -> BinaryIO:
    """``path`` opened for reading. A pipe would be waited for and a device may do anything, so neither is opened.

    Args:
        expected: what should stand there, for the message when nothing does.

    Raises:
        DataError: nothing is there, it is not a regular file, or it may not be read.
    """
    try:
        _check_kind(path, os.stat(path).st_mode)
        # Should it have become a pipe since: do not wait for its writer, and look again.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = os.fdopen(handle, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file" + (f"; expected {expected}" if expected else "")) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        _check_kind(path, os.fstat(handle).st_mode)
    except DataError:
        file.close()
        raise
    return file


def read_regular(path: str | Path, expected: str = "", largest: int | None = None) -> bytes:
    """The whole content; errors as `open_regular`, and DataError for more than ``largest`` bytes or a failing disk."""
    with open_regular(path, expected) as file:
        size = size_of(file)
        if largest is not None and size > largest:
            raise DataError(f"{path}: has {size} bytes; expected at most {largest}")
        try:
            return file.read()
        except (OSError, MemoryError) as error:
            raise DataError(f"{path}: cannot be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What a library said of a damaged file, short enough for a sentence: it may quote all of the file."""
    said = str(error).partition("\n")[0]
    return (said if len(said) <= 200 else said[:200] + "...") or type(error).__name__


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def affordable(wanted: int, size: int, what: str, times: int = 4) -> None:
    """Refuse a claim before memory is taken for it.

    Raises:
        DataError: ``wanted`` bytes are more than `SPARE` and ``times`` the ``size`` of the file that claims them.
    """
    if wanted > SPARE + times * size:
        raise DataError(
            f"{what} claims {wanted / 1e6:.4g} MB in a file of {size / 1e6:.3g} MB; at most {SPARE / 1e6:.0f} MB and "
            f"{times} times the file are believed. If it is honest, save it uncompressed (numpy.savez, not "
            "savez_compressed) or in parts"
        )


def _check_kind(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(mode)), "something else")
        raise DataError(f"{path}: {kind}, not a file; it was not opened")
