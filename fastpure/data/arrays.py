"""Images and labels as numpy files: one ``.npz``, or a folder with ``images.npy`` and ``labels.npy``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError, mistake, one_of
from .base import Dataset
from .jpeg_pack import is_jpeg_pack, read_jpeg_pack

__all__ = ["IMAGE_KEYS", "LAYOUTS", "channels_first", "read_arrays", "read_npy"]

LAYOUTS = ("auto", "NCHW", "NHWC")
IMAGE_KEYS = ("images", "x", "data", "pixels")
_KEYS = {
    "images": IMAGE_KEYS,
    "labels": ("labels", "y", "targets"),
    "ids": ("sample_ids", "ids", "index"),
    "classes": ("classes", "class_names"),
}
_DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


def read_arrays(
    path: str | Path, name: str | None = None, split: str = "test", layout: str = "auto"
) -> Dataset:
    """Images and labels from ``path``.

    Args:
        path: an ``.npz`` with the images under "images", "x", "data" or "pixels", the labels under "labels",
            "y" or "targets", and optionally sample ids ("sample_ids", "ids" or "index") and class names
            ("classes" or "class_names"); or a folder with ``images.npy``, ``labels.npy`` and optionally
            ``ids.npy``; or a JPEG pack. Images are uint8, or floating in [0, 1].
        name: for reports; the file's own name if None.
        layout: ``"NCHW"``, ``"NHWC"``, or ``"auto"``, which goes by the axis that is 1 or 3 long. Images
            ``[N, H, W]`` are grey.

    Returns:
        The data set; ``sample_ids`` are positions where the file has none.

    Raises:
        ValueError: an unknown layout.
        DataError: nothing is there, it is damaged, an array is missing or of the wrong type, shape or range.
    """
    one_of("layout", layout, LAYOUTS)
    file = Path(path)
    arrays = _from_folder(file) if file.is_dir() else _from_npz(file)
    if arrays is None:
        return read_jpeg_pack(file, name or file.stem, split)
    images = channels_first(arrays["images"], layout, str(path))
    labels, ids = (_integers(arrays, key, len(images), path) for key in ("labels", "ids"))
    if labels is None:
        raise DataError(f"{path}: lacks labels")
    count = int(labels.max()) + 1 if len(labels) else 1
    classes = arrays.get("classes", np.arange(count))
    try:
        return Dataset(
            pixels=torch.from_numpy(images),
            labels=torch.from_numpy(labels),
            sample_ids=torch.arange(len(images)) if ids is None else torch.from_numpy(ids),
            classes=tuple(str(label) for label in classes),
            name=name or file.stem,
            split=split,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def read_npy(path: Path) -> np.ndarray:
    """The array in a ``.npy`` file. Raises DataError if it is missing, damaged or holds objects."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        raise DataError(f"{path}: cannot be read as .npy: {error}") from error


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


def _from_folder(path: Path) -> dict[str, np.ndarray]:
    arrays = {key: read_npy(path / f"{key}.npy") for key in ("images", "labels")}
    if (path / "ids.npy").exists():
        arrays["ids"] = read_npy(path / "ids.npy")
    return arrays


def _from_npz(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an ``.npz`` by what they are; None for a JPEG pack."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz with images and labels")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if is_jpeg_pack(archive.files):
                return None
            found = {
                part: next((name for name in names if name in archive.files), None)
                for part, names in _KEYS.items()
            }
            if found["images"] is None:
                expected = " or ".join(_KEYS["images"])
                raise DataError(f"{path}: lacks images ({expected}); it has {', '.join(archive.files)}")
            return {part: archive[name] for part, name in found.items() if name is not None}
    except DataError:
        raise
    except (*_DAMAGED, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from error
