"""Reader for JPEG packs: one ``.npz`` holding the bytes of many small JPEG files and their labels.

Keys: ``jpeg`` uint8 (all files one after the other), ``offsets`` int64 ``[N + 1]``, ``labels`` uint8
``[N]``, ``classes`` (names), and optionally ``index`` ``[N]``, the position in the original order.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Container
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError
from .base import Dataset

__all__ = ["is_jpeg_pack", "read_jpeg_pack"]

_REQUIRED = ("jpeg", "offsets", "labels", "classes")


def read_jpeg_pack(path: str | Path, name: str, split: str) -> Dataset:
    """Decode a JPEG pack; pixels stay uint8. ``sample_ids`` are ``index``, or positions without one.

    Raises:
        DataError: with the file and the reason: missing, damaged, wrong keys, offsets that do not fit,
            labels without a name, an image that cannot be decoded (its position is given).
    """
    arrays = _read_arrays(Path(path))
    _check_arrays(Path(path), arrays)
    pixels = _decode(Path(path), arrays["jpeg"].tobytes(), arrays["offsets"])
    count = len(arrays["labels"])
    index = arrays.get("index", np.arange(count))
    try:
        return Dataset(
            pixels=torch.from_numpy(pixels),
            labels=torch.from_numpy(arrays["labels"].astype(np.int64)),
            sample_ids=torch.from_numpy(index.astype(np.int64)),
            classes=tuple(str(label) for label in arrays["classes"]),
            name=name,
            split=split,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def is_jpeg_pack(keys: Container[str]) -> bool:
    """Whether an ``.npz`` file with these keys is a JPEG pack."""
    return all(key in keys for key in _REQUIRED)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a JPEG pack (.npz)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _REQUIRED if key not in archive]
            if missing:
                raise DataError(f"{path}: not a JPEG pack, it lacks {', '.join(missing)}")
            return {key: archive[key] for key in (*_REQUIRED, "index") if key in archive}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from error


def _check_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    jpeg, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1:
        raise DataError(f"{path}: `jpeg` must be a uint8 vector, got {jpeg.dtype} {jpeg.shape}")
    for key in ("offsets", "labels", "index"):
        if key in arrays and (arrays[key].dtype.kind not in "iu" or arrays[key].ndim != 1):
            raise DataError(f"{path}: `{key}` must be a vector of integers, got {arrays[key].dtype}")
    if len(offsets) != len(labels) + 1:
        raise DataError(f"{path}: {len(labels)} labels need {len(labels) + 1} offsets, got {len(offsets)}")
    if len(labels) == 0:
        raise DataError(f"{path}: holds no images")
    if offsets[0] != 0 or offsets[-1] != len(jpeg) or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise DataError(f"{path}: `offsets` must rise from 0 to {len(jpeg)}, the number of JPEG bytes")


def _decode(path: Path, data: bytes, offsets: np.ndarray) -> np.ndarray:
    """All images as uint8 ``[N, C, H, W]``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading JPEG packs needs Pillow: pip install pillow") from error
    bounds = offsets.tolist()
    pixels: np.ndarray | None = None
    for i, (start, stop) in enumerate(pairwise(bounds)):
        try:
            with Image.open(io.BytesIO(data[start:stop]), formats=["JPEG"]) as picture:
                image = np.asarray(picture)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path}: image {i} cannot be decoded: {error}") from error
        image = image[:, :, None] if image.ndim == 2 else image
        if pixels is None:
            pixels = np.empty((len(bounds) - 1, *image.transpose(2, 0, 1).shape), dtype=np.uint8)
        if image.transpose(2, 0, 1).shape != pixels.shape[1:]:
            raise DataError(f"{path}: image {i} is {image.shape}, the first one differs")
        pixels[i] = image.transpose(2, 0, 1)
    if pixels is None:
        raise DataError(f"{path}: holds no images")
    return pixels
