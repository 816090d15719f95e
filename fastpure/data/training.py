"""Images to train on and images to score on, from whatever people have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import mistake, one_of, whole
from .arrays import read_arrays
from .base import Dataset
from .given import needed, no_key, no_size
from .image_folder import read_image_folder, split_folder
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


def _of_folder(name: str, path: Path, size: int | None, keep: str | Path | None) -> tuple[Dataset, Dataset]:
    reading = IMAGENET if name == "imagenet" else TORCHVISION
    size = 224 if size is None and name == "imagenet" else size
    sides = {} if size is None else squares(name, size)

    def read(
        split: str, part: Callable[[int], np.ndarray] | None, classes: tuple[str, ...] | None = None
    ) -> Dataset:
        return read_image_folder(
            path, name, split, classes=classes, reading=reading, part=part, keep=keep, **sides
        )

    own = split_folder(path, "train"), split_folder(path, "test")
    if all(own):
        train = read("train", None)
        return train, read("test", None, classes=train.classes)
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
