"""Images and labels as numpy files: one ``.npz``, or a folder with ``images.npy`` and ``labels.npy``."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError, mistake, one_of
from .base import Dataset, class_names, faint, numbered
from .given import no_key
from .jpeg_pack import is_jpeg_pack, read_jpeg_pack
from .listing import contents, left_out
from .numpy_files import Arrays, images_of
from .regular import affordable

LAYOUTS = ("auto", "NCHW", "NHWC")
_KEYS = {
    "labels": ("labels", "y", "targets"),
    "ids": ("sample_ids", "ids", "index"),
    "classes": ("classes", "class_names"),
}
_PER_IMAGE = 16  # bytes that a label and an id take in the data set, whatever they take in the file


def read_arrays(
    path: str | Path,
    name: str | None = None,
    split: str = "test",
    layout: str = "auto",
    key: str | None = None,
) -> Dataset:
    """Images and labels from ``path``.

    Args:
        path: an ``.npz`` with the images under "images", "x", "data" or "pixels", the labels under "labels",
            "y" or "targets", and optionally sample ids ("sample_ids", "ids" or "index") and class names
            ("classes" or "class_names"); an archive of ``fastpure attack``, whose attacked images are taken; a folder
            with ``images.npy``, ``labels.npy`` and optionally ``ids.npy``; or a JPEG pack. Images are uint8, or
            floating in [0, 1].
        name: for reports; the file's own name if None.
        layout: ``"NCHW"``, ``"NHWC"``, or ``"auto"``, which goes by the axis that is 1 or 3 long. Images
            ``[N, H, W]`` are grey.
        key: the array of an ``.npz`` that holds the images; needed where several have the shape of images.

    Returns:
        The data set; ``sample_ids`` are positions where the file has none. Its ``note``, and a warning, say which
        array was taken where there was a choice, what was not read, and if bytes seem to have other levels than 255.

    Raises:
        ValueError: an unknown layout, or a ``key`` for a folder or a JPEG pack.
        DataError: nothing is there, it is damaged, an array is missing or of the wrong type, shape or range, or it is
            not plain which one holds the images.
    """
    one_of("layout", layout, LAYOUTS)
    file = Path(path)
    if file.is_dir():
        no_key(key, str(file), "it holds one set of images")
        arrays, note = _from_folder(file)
    else:
        found = Arrays.open(file, "an .npz with images and labels")
        if is_jpeg_pack(found.headers):
            no_key(key, str(file), "it holds one set of images")
            return read_jpeg_pack(file, name or file.stem, split)
        arrays, note = _from_npz(found, key)
    images = channels_first(arrays["images"], layout, str(path))
    dark = faint(torch.from_numpy(images))
    if said := "; ".join(filter(None, (note if key is None else "", dark))):
        warnings.warn(f"{path}: {said}", stacklevel=2)
    note = "; ".join(filter(None, (note, dark)))
    labels, ids = (_integers(arrays, part, len(images), path) for part in ("labels", "ids"))
    if labels is None:
        raise DataError(f"{path}: lacks labels ({' or '.join(_KEYS['labels'])})")
    top = int(labels.max()) if len(labels) else 0
    names = arrays.get("classes")
    try:
        return Dataset(
            pixels=torch.from_numpy(images),
            labels=torch.from_numpy(labels),
            sample_ids=torch.arange(len(images)) if ids is None else torch.from_numpy(ids),
            classes=numbered(top, "are these labels?") if names is None else class_names(names, str(path)),
            name=name or file.stem,
            split=split,
            note=note,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def channels_first(images: np.ndarray, layout: str, source: str) -> np.ndarray:
    """``images`` as ``[N, C, H, W]``, uint8 or float32, in memory order.

    Raises:
        DataError: not images, or a layout that cannot be told.
    """
    if images.dtype == np.uint8:
        pass
    elif images.dtype.kind == "f":
        images = images.astype(np.float32)
    else:
        raise DataError(f"{source}: images must be uint8 or floating in [0, 1], found {images.dtype}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim != 4:
        raise DataError(
            f"{source}: images must be [N, C, H, W], [N, H, W, C] or [N, H, W], found {images.shape}"
        )
    elif layout == "NHWC" or (layout == "auto" and _ends_in_channels(images.shape, source)):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


def _ends_in_channels(shape: tuple[int, ...], source: str) -> bool:
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        raise DataError(f"{source}: " + mistake("layout", "given ('NCHW' or 'NHWC')", f"'auto' for {shape}"))
    return last


def _integers(arrays: dict[str, np.ndarray], key: str, count: int, path: str | Path) -> np.ndarray | None:
    if key not in arrays:
        return None
    values = arrays[key]
    if values.dtype.kind not in "iu" or values.shape != (count,):
        found = f"{values.dtype} {values.shape}"
        raise DataError(f"{path}: {key} must be {count} integers, one per image, found {found}")
    return values.astype(np.int64)


def _from_folder(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays by what they are, and what else is in the folder."""
    wanted = {key: path / f"{key}.npy" for key in ("images", "labels", "ids")}
    if not wanted["ids"].exists():
        del wanted["ids"]
    opened = {key: Arrays.open(file) for key, file in wanted.items()}
    _check_count(opened["images"], "")
    others = [file for file in contents(path) if file not in wanted.values()]
    return {key: arrays.read("") for key, arrays in opened.items()}, left_out(others)


def _from_npz(arrays: Arrays, key: str | None) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of an ``.npz`` by what they are, and what was taken and left."""
    choice = images_of(arrays, key)
    _check_count(arrays, choice.name)
    taken = {"images": choice.name}
    for part, names in _KEYS.items():
        there = [name for name in names if name in arrays.headers and name != choice.name]
        if len(there) > 1:
            raise DataError(
                f"{arrays.path}: {' and '.join(there)} may both be the {part}; expected one. Rename the rest"
            )
        if there:
            taken[part] = there[0]
    rest = [name for name in arrays.headers if name not in taken.values()]
    note = "; ".join(filter(None, (choice.why, f"not read: {', '.join(rest[:8])}" if rest else "")))
    return {part: arrays.read(name) for part, name in taken.items()}, note


def _check_count(arrays: Arrays, name: str) -> None:
    """Refuse billions of images without pixels: a file of nothing says so in a few bytes."""
    shape = arrays.headers[name].shape
    if not shape or 0 in shape:
        raise DataError(f"{arrays.path}: holds no images: {arrays.headers[name]}")
    affordable(
        _PER_IMAGE * shape[0], arrays.path.stat().st_size, f"{arrays.path}: with {shape[0]} images, it"
    )
