"""Folders of image files, one subfolder per class, as ImageNet is usually kept."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError, mistake, whole
from .base import Dataset, literature_rows
from .listing import Listing, contents, list_classes
from .mapped import decoded
from .pictures import TORCHVISION, Picture, Reading

_WORDNET = re.compile(r"n\d{8}")
_SPLITS = ("train", "val", "test")
Part = Callable[[int], np.ndarray]
"""Number of pictures -> positions of those that are read, int64."""


def read_image_folder(
    path: str | Path,
    name: str = "folder",
    split: str = "test",
    *,
    resize: int | None = None,
    crop: int | None = None,
    n: int | None = None,
    data_seed: int = 0,
    classes: Sequence[str] | None = None,
    reading: Reading = TORCHVISION,
    part: Part | None = None,
    keep: str | Path | None = None,
) -> Dataset:
    """Images below ``path/CLASS``, or ``path/SPLIT/CLASS`` (``val`` counts as ``test``): torchvision's ``ImageFolder``.

    Args:
        resize: the shorter side becomes this long (bilinear with antialiasing, as torchvision's Resize).
        crop: then the central square of this side is kept. ImageNet: ``resize=256, crop=224``.
        n, data_seed: keep ``n`` images only, those of ``subset(n, data_seed)``, and decode no others.
        classes: folder names in label order; sorted names if None. Needed where a folder has a part of the
            classes a classifier knows, because labels are positions in this list.
        reading: what is done with transparency and unusual kinds of pictures (`fastpure.data.pictures`).
        part: which of the pictures, instead of ``n`` of them: positions among all, from their number.
        keep: a folder for the decoded pixels of a large set, which is then mapped instead of held in memory, and not
            decoded again as long as its files stay the same.

    Returns:
        The data set; classes are folder names, ``sample_ids`` are positions among all files in the order of
        ``ImageFolder`` (`list_classes`), whether or not they are kept. Bytes: 16-bit grey is rounded to 8. Files that
        are there and are not read are counted in its ``note``, and in a warning.

    Raises:
        TypeError, ValueError: a size is not a positive integer.
        DataError: no such folder, a class without images, a class that is not listed, a file that cannot be decoded,
            images of different sizes without ``resize`` and ``crop``, or another split. The message gives the file.
    """
    for argument, value in (("resize", resize), ("crop", crop)):
        if value is not None:
            whole(argument, value, 1)
    root, beside = _root(Path(path), split)
    found = list_classes(root)
    names, labels = _labels(root, found, classes)
    note = "; ".join(filter(None, (found.note, beside)))
    if note:
        warnings.warn(f"{root}: {note}", stacklevel=2)
    files = found.files
    if part is not None:
        rows = part(len(files))
    else:
        rows = np.arange(len(files)) if n is None else literature_rows(len(files), n, data_seed)
    chosen = [files[row][0] for row in rows]
    pixels = decoded(
        chosen, lambda path: _decode(path, reading, resize, crop), root, keep, (reading, resize, crop)
    )
    return Dataset(
        pixels=torch.from_numpy(pixels),
        labels=torch.tensor([labels[files[row][1]] for row in rows], dtype=torch.int64),
        sample_ids=torch.from_numpy(rows.astype(np.int64)),
        classes=names,
        name=name,
        split=split,
        note=note,
        named_by=str(root) if classes is None else "",
    )


def _decode(path: Path, reading: Reading, resize: int | None, crop: int | None) -> np.ndarray:
    """One picture as uint8 ``[3, H, W]``, resized and cropped as `read_image_folder` says."""
    from PIL import Image

    image = Picture.open(path, reading).rgb()
    if resize is not None:
        width, height = _shorter_side(image.size, resize)
        if max(width, height) > 100 * resize:
            raise DataError(
                f"{path}: {image.size[0]}x{image.size[1]} would become {width}x{height}. Crop it first"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if crop is not None:
        width, height = image.size
        if min(width, height) < crop:
            raise DataError(f"{path}: {width}x{height} is too small to crop {crop}x{crop}")
        left, top = round((width - crop) / 2), round((height - crop) / 2)
        image = image.crop((left, top, left + crop, top + crop))
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _shorter_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) with the shorter one ``side``; the longer one rounded down, as torchvision does."""
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def split_folder(path: Path, split: str) -> Path | None:
    """The folder in ``path`` that is this split's own (``val`` counts as ``test``), or None.

    A folder called like the split is one if it holds folders; ImageNet's own ``test`` holds unlabelled files.

    Raises:
        DataError: no such folder.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected one subfolder per class")
    for name in (split, "val") if split == "test" else (split,):
        folder = path / name
        if folder.is_dir() and any(entry.is_dir() for entry in contents(folder)):
            return folder
    return None


def _root(path: Path, split: str) -> tuple[Path, str]:
    """The folder of the class folders, and what stands beside it unread, in words."""
    folder = split_folder(path, split)
    if folder is not None:
        others = [entry.name for entry in contents(path) if entry.name not in _SPLITS]
        shown = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
        return folder, f"not read beside it: {shown}" if others else ""
    another = split_folder(path, "train" if split == "test" else "test")
    if another is not None:  # which is no class
        wanted = "test or val" if split == "test" else split
        raise DataError(
            f"{path}: holds {another.name}, but no folder {wanted}; expected that, or class folders alone. "
            f"To read {another.name}, give {another} itself"
        )
    return path, ""


def _labels(
    root: Path, found: Listing, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The class names, and the label of each class folder among them."""
    names = found.classes if classes is None else tuple(classes)
    unknown = [name for name in found.classes if name not in names]
    if unknown:
        raise DataError(
            f"{root}: " + mistake("classes", "a list of all class folders", f"none for {unknown[0]}")
        )
    if classes is None and len(names) != 1000 and all(_WORDNET.fullmatch(name) for name in names):
        warnings.warn(
            f"{root} has {len(names)} of ImageNet's 1000 classes: labels are positions among these, which a "
            "classifier of all 1000 does not use. Give `classes` (all 1000 names in order).",
            stacklevel=3,
        )
    if classes is None and all(name.isdecimal() for name in names):
        moved = [(label, name) for label, name in enumerate(names) if int(name) != label]
        if moved:
            label, name = moved[0]
            warnings.warn(
                f"{root}: class folders are numbered, but labels are positions among their names sorted as text, as "
                f"torchvision has them: folder {name} is label {label}. If the numbers are the labels of the "
                "classifier, give `classes` (all numbers in order)",
                stacklevel=3,
            )
    elif classes is None and len(names) == 1000 and not any(map(_WORDNET.fullmatch, names)):
        warnings.warn(
            f"{root} has 1000 class folders that are not called by WordNet's ids ({names[0]}, ...): labels are "
            "positions among their sorted names, and networks trained on ImageNet number its ids. If these are "
            "ImageNet's classes, give `classes` in their order",
            stacklevel=3,
        )
    return names, tuple(names.index(name) for name in found.classes)
