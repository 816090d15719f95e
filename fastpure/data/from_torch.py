"""Any torch Dataset as a `Dataset`: its items read once, checked, and named by their positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, mistake
from .base import Dataset

__all__ = ["from_torch"]


def from_torch(
    source: Any,
    *,
    name: str | None = None,
    split: str = "test",
    rows: Iterable[int] | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """The items ``(image, label)`` of a map-style torch Dataset.

    Args:
        source: has ``len`` and indexing. Images are PIL images or uint8 arrays ``[H, W, C]`` or ``[H, W]``, or
            tensors ``[C, H, W]``: uint8, or floating in [0, 1] (not normalised). Labels are integers.
        name, split: for reports; the class of ``source`` if ``name`` is None.
        rows: which positions to read; all if None.
        classes: class names; ``source.classes`` or numbers if None.

    Returns:
        The data set in the order of ``rows``; ``sample_ids`` are the positions in ``source``.

    Raises:
        TypeError: ``source`` cannot be indexed.
        ValueError: a position is out of range.
        DataError: an item is not an image with a label, or differs in shape or type from the first.
    """
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise TypeError(mistake("source", "a torch Dataset with len and indexing", type(source).__name__))
    chosen = list(range(len(source))) if rows is None else [int(row) for row in rows]
    if not chosen or min(chosen) < 0 or max(chosen) >= len(source):
        raise ValueError(mistake("rows", f"positions in 0..{len(source) - 1}", f"{len(chosen)} positions"))
    images: list[Tensor] = []
    labels: list[int] = []
    for row in chosen:
        image, label = _item(source, row)
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            found = f"{image.dtype} {list(image.shape)}"
            raise DataError(
                f"item {row} is {found}, item {chosen[0]} {images[0].dtype} {list(images[0].shape)}"
            )
        images.append(image)
        labels.append(label)
    names = classes if classes is not None else getattr(source, "classes", None)
    try:
        return Dataset(
            pixels=torch.stack(images),
            labels=torch.tensor(labels, dtype=torch.int64),
            sample_ids=torch.tensor(chosen, dtype=torch.int64),
            classes=tuple(map(str, range(max(labels) + 1) if names is None else names)),
            name=name or type(source).__name__,
            split=split,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{type(source).__name__}: {error}") from error


def _item(source: Any, row: int) -> tuple[Tensor, int]:
    item = source[row]
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise DataError(f"item {row} is {type(item).__name__}, expected (image, label)")
    try:
        label = int(item[1])
    except (TypeError, ValueError) as error:
        raise DataError(f"item {row} has label {item[1]!r}, expected an integer") from error
    return _image(item[0], row), label


def _image(image: Any, row: int) -> Tensor:
    if not isinstance(image, Tensor):
        array = np.array(image)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise DataError(f"item {row} is {array.dtype} {array.shape}, expected uint8 [H, W, C] or [H, W]")
        image = torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
    if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise DataError(
            f"item {row} is {image.dtype} {list(image.shape)}, expected uint8 or floating [C, H, W]"
        )
    return image if image.dtype == torch.uint8 else image.to(torch.float32)
