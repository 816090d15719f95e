"""Data sets by name. A new one is a function and a line in `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import one_of
from .base import Dataset
from .digits import digits
from .jpeg_pack import cifar10, read_jpeg_pack

__all__ = ["DATASETS", "Dataset", "cifar10", "digits", "load_dataset", "read_jpeg_pack"]


def _digits(split: str, path: str | Path | None) -> Dataset:
    if path is not None:
        raise ValueError(f"`path` must not be given for data set 'digits' (it needs no file), got {path}")
    return digits(split)


DATASETS: dict[str, Callable[[str, str | Path | None], Dataset]] = {
    "digits": _digits,
    "cifar10": cifar10,
}


def load_dataset(name: str, split: str = "test", *, path: str | Path | None = None) -> Dataset:
    """The data set ``name`` (a key of `DATASETS`).

    Args:
        name: ``"digits"`` (needs no file) or ``"cifar10"`` (needs ``path``).
        split: ``"train"`` or ``"test"``.
        path: the file or folder with the images, for data sets that do not ship with a dependency.

    Raises:
        ValueError: an unknown name or split; ``path`` missing or not wanted.
        DataError: the file is missing or corrupt; the message gives the reason.
    """
    one_of("name", name, DATASETS)
    return DATASETS[name](split, path)
