"""Unpickling that can make numpy arrays, bytes, strings, numbers, lists and dicts, and run nothing else."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ..errors import DataError
from ..pickles import RestrictedUnpickler

__all__ = ["safe_loads"]


def safe_loads(content: bytes, source: str) -> Any:
    """The object pickled in ``content`` (Python 2 strings become bytes).

    Raises:
        DataError: the pickle is damaged, or wants anything beyond numpy arrays and plain containers; what it
            wanted was not run.
    """
    reason = "refused, since its pickle wants to run {}"
    try:
        return RestrictedUnpickler(
            io.BytesIO(content), len(content), _granted, reason, (np.ndarray, np.dtype), "bytes"
        ).load()
    except Exception as error:  # damaged pickles raise about every type there is
        refused = str(error).startswith("refused")
        words = error if refused else f"damaged pickle: {type(error).__name__}: {error}"
        raise DataError(f"{source}: {words}") from error


def _granted(module: str, name: str) -> Any:
    return _ALLOWED.get((module, name))


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> np.ndarray:
    """An empty array of numpy's own class, which is all that honest files ask for."""
    if kind is not np.ndarray:
        raise DataError(f"refused, since its pickle wants an array of class {kind!r}")
    if shape != (0,):  # what numpy writes; the real shape comes with the numbers and is compared with them
        raise DataError("refused, since its pickle wants an array without its numbers")
    return np.ndarray.__new__(np.ndarray, shape, typecode)


def _encode(text: str, codec: Any = "latin1") -> bytes:
    """How Python 3 writes bytes in old protocols."""
    if codec not in ("latin1", "latin-1", b"latin1", b"latin-1"):
        raise DataError(f"refused, since its pickle wants the codec {codec!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
