"""Unpickling that can make numpy arrays, bytes, strings, numbers, lists and dicts, and run nothing else."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from ..errors import DataError
from .regular import reason

__all__ = ["safe_loads"]

_MOST_ARRAYS = 4  # an official file has one; each copies bytes that the pickle may name again and again


def safe_loads(content: bytes, source: str) -> Any:
    """The object pickled in ``content`` (Python 2 strings become bytes). Takes memory for what is there, not claimed.

    Raises:
        DataError: the pickle is damaged, or wants anything beyond numpy arrays and plain containers; what it
            wanted was not run.
    """
    try:
        _check_claims(content)
        return _Unpickler(content).load()
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    except Exception as error:  # damaged pickles raise about every type there is
        raise DataError(f"{source}: damaged pickle: {type(error).__name__}: {reason(error)}") from error


def _check_claims(content: bytes) -> None:
    """Read the pickle without obeying it: texts must lie inside, and places in the memo must be numbered densely.

    `pickle` itself makes room for a text of any length, or a memo of four billion places, before it looks.
    """
    place = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            place += 1
            if int(argument or 0) > 2 * place + 1000:
                raise DataError(f"damaged pickle: place {argument} in a memo of about {place}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._room = len(content)
        self._arrays = 0

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return self._reconstruct
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(f"refused, since its pickle wants to run {module}.{name}") from None

    def _reconstruct(self, kind: Any, shape: Any, typecode: Any) -> np.ndarray:
        """An empty array of numpy's own class, which is all that honest files ask for; its bytes come afterwards."""
        self._arrays += 1
        if kind is not _NDARRAY or shape != (0,) or self._arrays > _MOST_ARRAYS:
            raise DataError(f"refused, since its pickle wants array {self._arrays}, of shape {shape!r}")
        return np.ndarray.__new__(np.ndarray, shape, typecode)

    def _encode(self, text: str, codec: Any = "latin1") -> bytes:
        """How Python 3 writes bytes in old protocols."""
        if codec not in ("latin1", "latin-1", b"latin1", b"latin-1"):
            raise DataError(f"refused, since its pickle wants the codec {codec!r}")
        self._room -= len(text)
        if self._room < 0:
            raise DataError("refused, since its pickle unpacks one text again and again")
        return text.encode("latin1")


_NDARRAY = object()
"""Stands for ``numpy.ndarray``, which a pickle must name but could also call with a shape of a terabyte."""

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): np.dtype,
}
