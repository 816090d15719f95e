"""Folders of image files, one subfolder per class, as ImageNet is usually kept."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError, mistake, whole
from .base import Dataset, literature_rows

__all__ = ["IMAGE_SUFFIXES", "decode", "read_image_folder"]

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
_WORDNET = re.compile(r"n\d{8}")


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
) -> Dataset:
    """Images in ``path/CLASS/FILE``, or in ``path/SPLIT/CLASS/FILE`` (``val`` counts as ``test``).

    Args:
        resize: the shorter side becomes this long (bilinear with antialiasing, as torchvision's Resize).
        crop: then the central square of this side is kept. ImageNet: ``resize=256, crop=224``.
        n, data_seed: keep ``n`` images only, those of ``subset(n, data_seed)``, and decode no others.
        classes: folder names in label order; sorted names if None. Needed where a folder has a part of the
            classes a classifier knows, because labels are positions in this list.

    Returns:
        The data set; classes are folder names, ``sample_ids`` are positions among all files, sorted by class
        and name, whether or not they are kept.

    Raises:
        TypeError, ValueError: a size is not a positive integer.
        DataError: no such folder, no images, a class that is not listed, a file that cannot be decoded, or
            images of different sizes without ``resize`` and ``crop``. The message gives the file.
    """
    for argument, value in (("resize", resize), ("crop", crop)):
        if value is not None:
            whole(argument, value, 1)
    root = _root(Path(path), split)
    files, names = _listing(root, classes)
    rows = np.arange(len(files)) if n is None else literature_rows(len(files), n, data_seed)
    pixels: np.ndarray | None = None
    for position, row in enumerate(rows):
        image = decode(files[row][0], resize, crop)
        if pixels is None:
            pixels = np.empty((len(rows), *image.shape), dtype=np.uint8)
        if image.shape != pixels.shape[1:]:
            first = "x".join(map(str, pixels.shape[1:]))
            found = "x".join(map(str, image.shape))
            raise DataError(f"{files[row][0]}: {found}, the first one is {first}; give `resize` and `crop`")
        pixels[position] = image
    assert pixels is not None  # a folder without images was refused, and n is at least 1
    return Dataset(
        pixels=torch.from_numpy(pixels),
        labels=torch.tensor([files[row][1] for row in rows], dtype=torch.int64),
        sample_ids=torch.from_numpy(rows.astype(np.int64)),
        classes=names,
        name=name,
        split=split,
    )


def decode(path: Path, resize: int | None = None, crop: int | None = None) -> np.ndarray:
    """One image file as uint8 ``[3, H, W]``, resized and cropped as `read_image_folder` says.

    Raises:
        DataError: the file cannot be decoded, or is smaller than ``crop``.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as an image: {error}") from error
    if resize is not None:
        image = image.resize(_shorter_side(image.size, resize), Image.Resampling.BILINEAR)
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


def _root(path: Path, split: str) -> Path:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected one subfolder per class")
    for name in (split, "val") if split == "test" else (split,):
        if (path / name).is_dir():
            return path / name
    return path


def _listing(root: Path, classes: Sequence[str] | None) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """(file, label) of every image, sorted by class and name; and the class names."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: holds no subfolders; expected one per class")
    names = tuple(folder.name for folder in folders) if classes is None else tuple(classes)
    unknown = [folder.name for folder in folders if folder.name not in names]
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
    label = {name: index for index, name in enumerate(names)}
    files = [
        (file, label[folder.name])
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise DataError(f"{root}: no image files ({', '.join(IMAGE_SUFFIXES)}) in its class folders")
    return files, names
