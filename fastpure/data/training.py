"""Images to train on and images to score on, from whatever people have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, listed, mistake, one_of, whole
from .arrays import read_arrays
from .base import Dataset, literature_rows
from .given import needed, no_key, no_size
from .image_folder import read_image_folder, split_folder
from .listing import class_folders
from .pictures import IMAGENET, TORCHVISION

OWN = ("folder", "arrays", "imagenet")
"""Kinds of data that may hold anything: any size, any classes."""

HELD_OUT = 10
"""One in so many images is held out where a folder or file has no test images of its own."""


def held_out(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions int64 of the images to train on, and of those that are held out: always the same tenth, at least one.

    Raises:
        ValueError: there are fewer than two.
    """
    whole("number of images", count, 2)
    order = np.random.RandomState(0).permutation(count)
    n = max(1, count // HELD_OUT)
    return np.sort(order[n:]), np.sort(order[:n])


def squares(name: str, size: int) -> dict[str, int]:
    """How pictures become squares of this side: arguments of `read_image_folder`."""
    whole("size", size, 4, 4096)
    return {"resize": round(size * 256 / 224) if name == "imagenet" else size, "crop": size}


def train_and_test(
    name: str,
    path: str | Path | None,
    *,
    key: str | None = None,
    size: int | None = None,
    keep: str | Path | None = None,
) -> tuple[Dataset, Dataset]:
    """(images to train on, images to score on) of a data set of one's own.

    Args:
        name: "folder" (``path/train/CLASS`` and ``path/test/CLASS`` or ``path/val/CLASS``, or ``path/CLASS`` alone),
            "imagenet" (the same, cut as ImageNet is), or "arrays" (``path/train.npz`` and ``path/test.npz``, or one
            file or folder that `read_arrays` reads). Where there are no test images, a tenth is held out
            (`held_out`), the same one every time.
        key: for arrays, which one holds the images.
        size: pictures become squares of this side: the shorter side to ``size`` for "folder", to 256/224 of it for
            "imagenet", then the central square. 224 for "imagenet" if None.
        keep: a folder for decoded pixels of large sets, see `read_image_folder`.

    Raises:
        ValueError: another name, no path, a size or key where it means nothing, or one image.
        DataError: as `read_image_folder` and `read_arrays`; or test images with classes that the others do not have.
    """
    one_of("data", name, OWN)
    path = Path(needed(path, name))
    if name == "arrays":
        no_size(size, name)
        return _of_arrays(path, key)
    no_key(key, f"data set {name!r}")
    return _of_folder(name, path, size, keep)


def of_split(
    name: str, path: Path, split: str, n: int | None = None, data_seed: int = 0, size: int | None = None
) -> Dataset:
    """Pictures of one split, labelled as in training, and wherever that can be told none that training sees.

    Args:
        name, path, size: as for `train_and_test`, "folder" or "imagenet".
        split: "train" or "test". Where ``path`` has ``train`` alone, the part that `train_and_test` gives; where it has
            no splits, or ``test`` alone, every picture is of the split "test", and the note says so.
        n, data_seed: as for `read_image_folder`; no others are decoded.

    Raises:
        ValueError, DataError: as for `read_image_folder`; test images of classes that ``train`` has not; only
            test images, and ``split`` is "train".
    """
    train, test = split_folder(path, "train"), split_folder(path, "test")
    options: dict[str, Any] = {"n": n, "data_seed": data_seed, **_cut(name, size)}
    if train is not None and test is not None:
        if split == "train":
            return read_image_folder(path, name, split, **options)
        dataset = read_image_folder(path, name, split, classes=_known(train, test), **options)
        return replace(dataset, named_by=str(train))
    if train is not None:

        def part(count: int) -> np.ndarray:
            rows = held_out(count)[split == "test"]
            return rows if n is None else rows[literature_rows(len(rows), n, data_seed)]

        said = "the tenth" if split == "test" else "all but the tenth"
        said += " that is held out, since there are no test images"
        dataset = read_image_folder(train, name, split, part=part, **_cut(name, size))
    elif test is not None and split == "train":
        remedy = "train_and_test holds a tenth of it out"
        raise DataError(f"{path}: holds {test.name}, but no folder train; expected both. {remedy}")
    else:
        said = "all pictures, also those `train` trains on"
        dataset = read_image_folder(path, name, split, **options)
    return replace(dataset, note="; ".join(filter(None, (dataset.note, said))))


def _known(train: Path, test: Path) -> tuple[str, ...]:
    """The classes of ``train``, of which those of ``test`` are some."""
    classes = class_folders(train)
    if unknown := [name for name in class_folders(test) if name not in classes]:
        remedy = f"To have them labelled by their own order, give {test} itself"
        raise DataError(f"{test}: has classes that {train} has not: {listed(unknown)}. {remedy}")
    return classes


def _cut(name: str, size: int | None) -> dict[str, Any]:
    """How pictures are read and cut: arguments of `read_image_folder`."""
    reading = IMAGENET if name == "imagenet" else TORCHVISION
    size = 224 if size is None and name == "imagenet" else size
    return {"reading": reading, **({} if size is None else squares(name, size))}


def _of_folder(name: str, path: Path, size: int | None, keep: str | Path | None) -> tuple[Dataset, Dataset]:
    def read(
        split: str, part: Callable[[int], np.ndarray] | None, classes: tuple[str, ...] | None = None
    ) -> Dataset:
        return read_image_folder(path, name, split, classes=classes, part=part, keep=keep, **_cut(name, size))

    own = split_folder(path, "train"), split_folder(path, "test")
    if all(own):
        train = read("train", None)
        return train, replace(read("test", None, classes=train.classes), named_by=train.named_by)
    path = own[0] or own[1] or path
    train, test = read("train", lambda n: held_out(n)[0]), read("test", lambda n: held_out(n)[1])
    return _noted(train, test)


def _of_arrays(path: Path, key: str | None) -> tuple[Dataset, Dataset]:
    files = [path / f"{split}.npz" for split in ("train", "test")]
    if path.is_dir() and all(file.is_file() for file in files):
        train, test = (
            read_arrays(file, path.name, split, key=key)
            for file, split in zip(files, ("train", "test"), strict=True)
        )
        classes = max(train.classes, test.classes, key=len)  # numbers where the files name none
        if classes[: len(train.classes)] == train.classes and classes[: len(test.classes)] == test.classes:
            train, test = replace(train, classes=classes), replace(test, classes=classes)
        if train.classes != test.classes or train.image_shape != test.image_shape:
            found = f"{test.image_shape} of {len(test.classes)} classes"
            expected = f"of the shape and classes of train.npz, {train.image_shape} of {len(train.classes)}"
            raise ValueError(mistake("test.npz", expected, found))
        return train, test
    whole_set = read_arrays(path, key=key)
    rows = held_out(len(whole_set))
    train, test = (
        replace(whole_set.select(part), split=split)
        for part, split in zip(rows, ("train", "test"), strict=True)
    )
    return _noted(train, test)


def _noted(train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    """With a word on what was held out."""
    said = f"{len(test)} of {len(train) + len(test)} images are held out, since there are no test images"
    return tuple(  # type: ignore[return-value]
        replace(part, note="; ".join(filter(None, (part.note, said)))) for part in (train, test)
    )
