"""Data sets by name. A new one is a function and a line in `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import one_of
from ..signatures import suggests_names
from .arrays import read_arrays
from .base import Dataset, from_torch
from .batches import as_dataset
from .cifar import cifar10, cifar100
from .digits import digits
from .given import needed, no_key, no_size
from .image_folder import read_image_folder
from .jpeg_pack import read_jpeg_pack
from .training import OWN, of_split, train_and_test

__all__ = [
    "DATASETS",
    "OWN",
    "Dataset",
    "as_dataset",
    "cifar10",
    "cifar100",
    "digits",
    "from_torch",
    "load_dataset",
    "read_arrays",
    "read_image_folder",
    "read_jpeg_pack",
    "train_and_test",
]

Where = str | Path | None
Reader = Callable[[str, Where, int | None, int, str | None, int | None], Dataset]


def _digits(split: str, path: Where) -> Dataset:
    if path is not None:
        raise ValueError(f"`path` must not be given for data set 'digits' (it needs no file), got {path}")
    return digits(split)


def _whole(name: str, read: Callable[[str, Where], Dataset]) -> Reader:
    """A reader of everything; a subset is taken afterwards."""

    def reader(
        split: str, path: Where, n: int | None, data_seed: int, key: str | None, size: int | None
    ) -> Dataset:
        no_key(key, f"data set {name!r}")
        no_size(size, name)
        dataset = read(split, path)
        return dataset if n is None else dataset.subset(n, data_seed)

    return reader


def _folder(name: str) -> Reader:
    """A reader that decodes the chosen images only."""

    def reader(
        split: str, path: Where, n: int | None, data_seed: int, key: str | None, size: int | None
    ) -> Dataset:
        one_of("split", split, ("train", "test"))
        no_key(key, f"data set {name!r}")
        return of_split(name, Path(needed(path, name)), split, n, data_seed, size)

    return reader


def _arrays(
    split: str, path: Where, n: int | None, data_seed: int, key: str | None, size: int | None
) -> Dataset:
    no_size(size, "arrays")
    one_of("split", split, ("train", "test"))
    dataset = read_arrays(needed(path, "arrays"), split=split, key=key)
    return dataset if n is None else dataset.subset(n, data_seed)


DATASETS: dict[str, Reader] = {
    "digits": _whole("digits", _digits),
    "cifar10": _whole("cifar10", cifar10),
    "cifar100": _whole("cifar100", cifar100),
    "imagenet": _folder("imagenet"),
    "folder": _folder("folder"),
    "arrays": _arrays,
}


@suggests_names
def load_dataset(
    name: str,
    split: str = "test",
    *,
    path: str | Path | None = None,
    n: int | None = None,
    data_seed: int = 0,
    key: str | None = None,
    size: int | None = None,
) -> Dataset:
    """The data set ``name`` (a key of `DATASETS`).

    Args:
        name: ``"digits"`` (needs no file); ``"cifar10"``, ``"cifar100"`` (official archives or their folders,
            or JPEG packs for CIFAR-10); ``"imagenet"`` (class folders, shorter side to 256, central 224x224);
            ``"folder"`` (class folders of images of one size); ``"arrays"`` (.npz, or a folder of .npy).
        split: ``"train"`` or ``"test"``. Of folders with ``train`` alone, the parts of `train_and_test`; test images
            are labelled by the class folders of ``train`` where there are such.
        path: the file or folder with the images, for data sets that do not ship with a dependency.
        n, data_seed: keep only ``n`` images, those of ``Dataset.subset(n, data_seed)``; None keeps all.
        key: for ``"arrays"``: which array of the ``.npz`` holds the images, where several could.
        size: for ``"folder"`` and ``"imagenet"``: pictures become squares of this side, as for `train_and_test`.

    Raises:
        ValueError: an unknown name or split; ``path`` missing or not wanted; ``n`` out of range.
        DataError: the file is missing or corrupt; the message gives the reason.
    """
    one_of("name", name, DATASETS)
    return DATASETS[name](split, path, n, data_seed, key, size)
