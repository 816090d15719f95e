"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official archives, Python or binary version.

Sample ids are positions in the official order: 0..9999 in the test set, 0..49999 in the training set (CIFAR-10's
five batches one after the other).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from ..errors import DataError, one_of
from ..pickles import RestrictedUnpickler
from .archive import Archive
from .base import Dataset
from .given import needed
from .jpeg_pack import read_jpeg_pack
from .regular import reason

_BYTES = 3 * 32 * 32


@final
@dataclass(frozen=True)
class _Layout:
    """Names and sizes of one data set's official files."""

    name: str
    classes: int
    archives: tuple[str, ...]
    python: dict[str, list[str]]
    binary: dict[str, list[str]]
    counts: dict[str, int]
    labels_key: bytes
    names_key: bytes
    python_names: str
    binary_names: str
    label_bytes: int

    def files(self, split: str, present: set[str]) -> list[str] | None:
        for version in (self.python, self.binary):
            if set(version[split]) <= present:
                return version[split]
        return None


CIFAR10 = _Layout(
    name="cifar10",
    classes=10,
    archives=(
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
    ),
    python={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    binary={"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
    counts={"train": 10_000, "test": 10_000},
    labels_key=b"labels",
    names_key=b"label_names",
    python_names="batches.meta",
    binary_names="batches.meta.txt",
    label_bytes=1,
)
CIFAR100 = _Layout(
    name="cifar100",
    classes=100,
    archives=("cifar-100-python.tar.gz", "cifar-100-python", "cifar-100-binary.tar.gz", "cifar-100-binary"),
    python={"train": ["train"], "test": ["test"]},
    binary={"train": ["train.bin"], "test": ["test.bin"]},
    counts={"train": 50_000, "test": 10_000},
    labels_key=b"fine_labels",
    names_key=b"fine_label_names",
    python_names="meta",
    binary_names="fine_label_names.txt",
    label_bytes=2,  # coarse, then fine
)


def cifar10(split: str = "test", path: str | Path | None = None) -> Dataset:
    """CIFAR-10: 32x32x3, ten classes.

    Args:
        split: ``"train"`` (50,000 images) or ``"test"`` (10,000).
        path: ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz``, the folder either was extracted to,
            the folder that holds one of these; or a JPEG pack, ``.npz`` or the folder with
            ``cifar10_train.npz`` and ``cifar10_test.npz``.

    Raises:
        ValueError: another split, or no ``path``.
        DataError: nothing is there, or it is corrupt: wrong sizes, labels out of range, a pickle that wants
            to run code. The message gives the file and the reason.
    """
    one_of("split", split, ("train", "test"))
    otherwise = "the .npz JPEG pack, or the folder with cifar10_train.npz"
    where = Path(needed(path, "cifar10", f"cifar-10-python.tar.gz, or {otherwise}"))
    pack = where / f"cifar10_{split}.npz" if where.is_dir() else where
    if pack.suffix != ".npz" or (where.is_dir() and not pack.exists()):
        return _official(CIFAR10, split, where)
    dataset = read_jpeg_pack(pack, "cifar10", split)
    if dataset.image_shape != (3, 32, 32) or len(dataset.classes) != 10:
        raise DataError(f"{path}: expected 32x32 colour images of 10 classes, got {dataset.describe()}")
    return dataset


def cifar100(split: str = "test", path: str | Path | None = None) -> Dataset:
    """CIFAR-100 with its 100 fine labels: 32x32x3.

    ``path``: ``cifar-100-python.tar.gz`` or ``cifar-100-binary.tar.gz``, the folder either was extracted to, or
    the folder that holds one of these. Splits and errors as for `cifar10`.
    """
    one_of("split", split, ("train", "test"))
    where = needed(path, "cifar100", "cifar-100-python.tar.gz, or its extracted folder")
    return _official(CIFAR100, split, Path(where))


def _official(layout: _Layout, split: str, path: Path) -> Dataset:
    archive = Archive.find(path, layout.archives)
    names = layout.files(split, archive.names())
    if names is None:
        expected = f"{', '.join(layout.python[split])} or {', '.join(layout.binary[split])}"
        raise DataError(f"{archive.path}: not {layout.name}: lacks {expected}")
    binary = names[0].endswith(".bin")
    naming = layout.binary_names if binary else layout.python_names
    contents = archive.read([*names, naming])
    read = _binary_batch if binary else _python_batch
    batches = [read(layout, contents[name], f"{archive.path}: {name}", split) for name in names]
    named = _text_names if binary else _pickled_names
    classes = named(layout, contents[naming], f"{archive.path}: {naming}")
    pixels = np.concatenate([pixels for pixels, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return Dataset(
        pixels=torch.from_numpy(pixels.reshape(-1, 3, 32, 32)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        sample_ids=torch.arange(len(labels)),
        classes=classes,
        name=layout.name,
        split=split,
    )


def _python_batch(layout: _Layout, content: bytes, source: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    batch = safe_loads(content, source)
    pixels, labels = _entry(batch, b"data", source), _entry(batch, layout.labels_key, source)
    shape = (layout.counts[split], _BYTES)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != shape:
        found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{source}: expected uint8 {shape} pixels, found {found}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{source}: expected a list of integers as labels")
    return pixels, _checked(layout, np.array(labels, dtype=np.int64), shape[0], source)


def _binary_batch(layout: _Layout, content: bytes, source: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    count, row = layout.counts[split], layout.label_bytes + _BYTES
    if len(content) != count * row:
        raise DataError(f"{source}: expected {count * row} bytes ({count} images), found {len(content)}")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(count, row)
    labels = rows[:, layout.label_bytes - 1].astype(np.int64)
    return np.ascontiguousarray(rows[:, layout.label_bytes :]), _checked(layout, labels, count, source)


def _checked(layout: _Layout, labels: np.ndarray, count: int, source: str) -> np.ndarray:
    if len(labels) != count:
        raise DataError(f"{source}: {count} images, but {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= layout.classes:
        raise DataError(f"{source}: labels {labels.min()}..{labels.max()} outside 0..{layout.classes - 1}")
    return labels


def _entry(batch: Any, key: bytes, source: str) -> Any:
    """Python 2 wrote the keys as bytes; a file re-written by Python 3 may have strings."""
    if not isinstance(batch, dict):
        raise DataError(f"{source}: expected a dict, found {type(batch).__name__}")
    for form in (key, key.decode()):
        if form in batch:
            return batch[form]
    raise DataError(f"{source}: lacks {key.decode()!r}; it has {', '.join(map(str, batch))}")


def _pickled_names(layout: _Layout, content: bytes, source: str) -> tuple[str, ...]:
    names = _entry(safe_loads(content, source), layout.names_key, source)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{source}: expected a list of class names")
    return _named(
        layout, [name.decode("latin1") if isinstance(name, bytes) else name for name in names], source
    )


def _text_names(layout: _Layout, content: bytes, source: str) -> tuple[str, ...]:
    return _named(layout, content.decode("latin1").split(), source)


def _named(layout: _Layout, names: list[str], source: str) -> tuple[str, ...]:
    if len(names) != layout.classes or len(set(names)) != layout.classes:
        raise DataError(f"{source}: expected {layout.classes} distinct class names, found {len(names)}")
    return tuple(names)


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
