"""Reader for JPEG packs: one ``.npz`` holding the bytes of many small JPEG files and their labels.

Keys: ``jpeg`` uint8 (all files one after the other), ``offsets`` int64 ``[N + 1]``, ``labels`` uint8
``[N]``, ``classes`` (names), and optionally ``index`` ``[N]``, the position in the original order.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError
from .base import Dataset, class_names
from .numpy_files import Arrays
from .pictures import TORCHVISION, Picture
from .regular import affordable

_REQUIRED = ("jpeg", "offsets", "labels", "classes")
_PACKED = 100  # a JPEG smaller than its pixels by more shows nothing
_JPEG = replace(TORCHVISION, formats=("JPEG",))


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
            classes=class_names(arrays["classes"], str(path)),
            name=name,
            split=split,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def is_jpeg_pack(keys: Container[str]) -> bool:
    """Whether an ``.npz`` file with these keys is a JPEG pack."""
    return all(key in keys for key in _REQUIRED)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    found = Arrays.open(path, "a JPEG pack (.npz)")
    missing = [key for key in _REQUIRED if key not in found.headers]
    if missing:
        raise DataError(f"{path}: not a JPEG pack, it lacks {', '.join(missing)}")
    if images := [name for name, header in found.headers.items() if header.like_images]:
        raise DataError(
            f"{path}: a JPEG pack with other images in it ({', '.join(images)}); expected one of them"
        )
    return {key: found.read(key) for key in (*_REQUIRED, "index") if key in found.headers}


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
    """All images as uint8 ``[N, C, H, W]``. Sizes are compared by the headers, before anything is decoded."""
    bounds = offsets.tolist()
    parts = [(i, data[start:stop]) for i, (start, stop) in enumerate(pairwise(bounds))]
    shapes = [_shape(_picture(path, i, part)) for i, part in parts]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise DataError(f"{path}: image {i} is {shape}, the first one is {shapes[0]}")
    wanted = len(shapes) * math.prod(shapes[0])
    affordable(wanted, len(data), f"{path}: with {len(shapes)} images, it", times=_PACKED)
    pixels = np.empty((len(shapes), *shapes[0]), dtype=np.uint8)
    for i, part in parts:
        pixels[i] = _picture(path, i, part).array()
    return pixels


def _picture(path: Path, i: int, content: bytes) -> Picture:
    return Picture.of_bytes(content, f"{path}: image {i}", _JPEG)


def _shape(picture: Picture) -> tuple[int, int, int]:
    return 1 if picture.grey else 3, picture.height, picture.width
