"""Unpickling that can make numpy arrays, bytes, strings, numbers, lists and dicts, and run nothing else."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ..errors import DataError
from ..pickles import RestrictedUnpickler
from .regular import reason

_MOST_ARRAYS = 4  # an official file has one; each copies bytes that the pickle may name again and again

_NDARRAY = object()
"""Stands for ``numpy.ndarray``, which a pickle must name but could also call with a shape of a terabyte."""


def safe_loads(content: bytes, source: str) -> Any:
    """The object pickled in ``content`` (Python 2 strings become bytes). Takes memory for what is there, not claimed.

    Raises:
        DataError: the pickle is damaged, or wants anything beyond numpy arrays and plain containers; what it
            wanted was not run.
    """
    words = "refused, since its pickle wants to run {}"
    grants, states = _Grants(len(content)), (np.ndarray, np.dtype)
    try:
        return RestrictedUnpickler(
            io.BytesIO(content), len(content), grants.of, words, states, "bytes"
        ).load()
    except Exception as error:  # damaged pickles raise about every type there is
        refused = str(error).startswith("refused")
        said = error if refused else f"damaged pickle: {type(error).__name__}: {reason(error)}"
        raise DataError(f"{source}: {said}") from error


class _Grants:
    """What stands for the names in one pickle of ``room`` bytes."""

    def __init__(self, room: int) -> None:
        self._room, self._arrays = room, 0

    def of(self, module: str, name: str) -> Any:
        """The object, or None where it is refused."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return self._reconstruct
        known = {
            ("_codecs", "encode"): self._encode,
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): np.dtype,
        }
        return known.get((module, name))

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
