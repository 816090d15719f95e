"""What people have instead of a `Dataset`: a DataLoader, batches of any kind, a pair of tensors, a torch data set.

Images are looked at as they come: one that was normalised already, or whose channels stand last, is refused at once and
not after hours of an attack on something else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from ..errors import mistake
from .base import Dataset, class_folder, faint, from_torch, numbered

_NORMALISED = (
    "Leave normalisation out of the transforms and give it to the defence: fp.Defense(purifier, network, mean=..., "
    "std=...), or fp.Normalised(network, mean, std) for a network without purifier"
)
_WHAT = "a fastpure.data.Dataset, a DataLoader, batches (images, labels), or a pair of tensors"


def as_dataset(source: Any, argument: str = "dataset") -> Dataset:
    """``source`` as a data set; one of ours is returned as it is.

    Args:
        source: a `Dataset`; a ``DataLoader`` or any iterable of batches (images, labels) or (images, labels, ids); a
            pair (images, labels) of tensors or arrays; or a map-style torch data set of (image, label) or (image,
            label, id). Images are ``[B, C, H, W]``, floating in [0, 1] or uint8, labels integers ``[B]``.

    Returns:
        The data set. Ids are the third part of batches and items where there is one; the images are then put in their
        order, so that a shuffling loader gives the same run again. Otherwise they are positions: among all images, or
        in the data set of which a ``Subset`` was taken. Class names are those of the loader's data set, or numbers.

    Raises:
        TypeError: nothing of this kind.
        ValueError: no image, a loader that shuffles or leaves out images, or images, labels or ids of the wrong type,
            shape or range. The message names the batch.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, tuple | list) and len(source) == 2 and all(map(_is_array, source)):
        if _labels_of(source[1]) is None and np.ndim(source[1]) > 2:
            raise TypeError(mistake(argument, _WHAT, "two arrays of images"))
        return _gathered([tuple(source)], argument, "arrays", None, None)
    if isinstance(source, torch_data.DataLoader):
        return _of_loader(source, argument)
    if isinstance(source, torch_data.Dataset) and not isinstance(source, torch_data.IterableDataset):
        return _of_map_style(source)
    if isinstance(source, str | bytes | Mapping | Tensor | np.ndarray) or not isinstance(source, Iterable):
        remedy = "Load one with fastpure.data.load_dataset('digits'), or build a Dataset from tensors"
        raise TypeError(mistake(argument, _WHAT, type(source).__name__, remedy))
    return _gathered(source, argument, type(source).__name__, None, None)


def _of_loader(loader: Any, argument: str) -> Dataset:
    beneath, ids = _beneath(loader.dataset)
    names = getattr(beneath, "classes", None)
    if isinstance(loader.dataset, torch_data.IterableDataset):
        return _gathered(loader, argument, type(beneath).__name__, names, None)
    sampler, left = _order(loader)
    if left:
        found = f"drop_last=True, which leaves out {left} of {len(loader.dataset)} images"
        raise ValueError(mistake(argument, "a loader of all its images", found, "Pass drop_last=False"))
    ordered = type(sampler) is torch_data.SequentialSampler  # what a subclass does, nobody knows
    if not ordered:
        ids = None  # of the images as the data set has them, not as they come
    dataset = _gathered(loader, argument, type(beneath).__name__, names, ids, None if ordered else sampler)
    return replace(dataset, named_by=class_folder(beneath))


def _order(loader: Any) -> tuple[Any, int]:
    """What decides on the order of the images, and how many are left out at the end.

    The loader's own ``sampler`` and ``drop_last`` say nothing where a ``batch_sampler`` was given: torch then shows
    those of a loader that was given none.
    """
    batches = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(batches) is not torch_data.BatchSampler:
        return batches, 0
    sampler: Any = batches.sampler
    return sampler, len(sampler) % batches.batch_size if batches.drop_last else 0


def _of_map_style(source: Any) -> Dataset:
    beneath, ids = _beneath(source)
    classes = _named(getattr(beneath, "classes", None))
    if _brings_ids(source):
        found = from_torch(source, name=type(beneath).__name__, classes=classes, named=True)
        found = found.select(torch.argsort(found.sample_ids))  # as out of a loader
    else:
        found = from_torch(source, name=type(beneath).__name__, classes=classes)
        found = found if ids is None else replace(found, sample_ids=torch.tensor(ids))
    return replace(found, named_by=class_folder(beneath))


def _brings_ids(source: Any) -> bool:
    """Whether the items are (image, label, id), as the first one is."""
    if not hasattr(source, "__len__") or not len(source):
        return False
    first = source[0]
    return isinstance(first, tuple | list) and len(first) == 3


def _beneath(source: Any) -> tuple[Any, list[int] | None]:
    """The data set beneath all ``Subset``, and the positions in it; None where it is whole, or holds one twice."""
    rows: list[int] | None = None
    while isinstance(source, torch_data.Subset):
        indices = [int(i) for i in source.indices]
        rows = indices if rows is None else [indices[i] for i in rows]
        source = source.dataset
    return source, rows if rows is not None and len(set(rows)) == len(rows) else None


def _gathered(
    batches: Iterable[Any],
    argument: str,
    name: str,
    classes: Any,
    positions: Sequence[int] | None,
    sampler: Any = None,
) -> Dataset:
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for number, batch in enumerate(batches):
        part = _part(batch, f"{argument}, batch {number}", number)
        if sampler is not None and part[2] is None:
            remedy = "Pass shuffle=False, or batches (images, labels, ids)"
            expected = "a loader that keeps its order, since images are named by their position"
            raise ValueError(mistake(argument, expected, type(sampler).__name__, remedy))
        _same_kind(parts[0] if parts else part, part, f"{argument}, batch {number}")
        parts.append(part)
    if not sum(len(part[1]) for part in parts):
        raise ValueError(mistake(argument, "at least one image", "none"))
    pixels, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))  # type: ignore[misc]
    if parts[0][2] is not None:
        ids = torch.cat([part[2] for part in parts if part[2] is not None])
        order = torch.argsort(ids)
        pixels, labels, ids = pixels[order], labels[order], ids[order]
    else:
        ids = torch.arange(len(labels)) if positions is None else torch.tensor(list(positions))
    names = _named(classes) or numbered(int(labels.max()), "are these labels?")
    if note := faint(pixels):
        warnings.warn(f"`{argument}`: {note}", stacklevel=2)
    try:
        return Dataset(pixels, labels, ids, names, name, "test", note=note)
    except ValueError as error:
        raise ValueError(f"`{argument}`: {error}") from error


def _part(batch: Any, where: str, number: int) -> tuple[Tensor, Tensor, Tensor | None]:
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
        found = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        remedy = "Wrap it: ((b['image'], b['label']) for b in loader)" if isinstance(batch, Mapping) else ""
        raise ValueError(mistake(where, "(images, labels) or (images, labels, ids)", found, remedy))
    images = _images(batch[0], where)
    labels = _labels_of(batch[1])
    if labels is None or labels.shape != images.shape[:1]:
        found = _described(batch[1])
        remedy = ""
        if np.ndim(batch[1]) == 0:
            remedy = "This is one image with its label: give a DataLoader of the data set"
        elif np.ndim(batch[1]) == 2:
            remedy = "One column per class: labels.argmax(1) are the classes"
        raise ValueError(mistake(f"labels of {where}", f"{len(images)} integers", found, remedy))
    if bool((labels < 0).any()):
        raise ValueError(mistake(f"labels of {where}", "classes 0, 1, ...", f"{int(labels.min())}"))
    if len(batch) == 2:
        return images, labels, None
    ids = _labels_of(batch[2])
    if ids is None or ids.shape != labels.shape:
        raise ValueError(mistake(f"ids of {where}", f"{len(images)} integers", _described(batch[2])))
    return images, labels, ids


def _images(value: Any, where: str) -> Tensor:
    images = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        found = _described(value)
        remedy = "Add transforms.ToTensor() to the data set" if not _is_array(value) else ""
        raise ValueError(mistake(f"images of {where}", "uint8 or floating [B, C, H, W]", found, remedy))
    images = images.detach().cpu()
    if images.ndim != 4:
        raise ValueError(mistake(f"images of {where}", "of shape [B, C, H, W]", list(images.shape)))
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        remedy = "Put the channels first: images.permute(0, 3, 1, 2)"
        raise ValueError(mistake(f"images of {where}", "of shape [B, C, H, W]", list(images.shape), remedy))
    if images.dtype == torch.uint8 or not images.numel():
        return images
    images = images.to(torch.float32)
    low, high = (float(value) for value in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        remedy = "Divide by 255" if low >= 0 and 1 < high <= 255 and high > 10 else _NORMALISED
        raise ValueError(mistake(f"images of {where}", "in [0, 1]", f"{low:.4g}..{high:.4g}", remedy))
    return images


def _same_kind(
    first: tuple[Tensor, Tensor, Tensor | None], part: tuple[Tensor, Tensor, Tensor | None], where: str
) -> None:
    for what, a, b in (("images", first[0], part[0]), ("ids", first[2], part[2])):
        kinds = [None if t is None else (t.dtype, list(t.shape[1:])) for t in (a, b)]
        if kinds[0] != kinds[1]:
            expected = (
                "none" if kinds[0] is None else f"{kinds[0][0]} {kinds[0][1]} each, like the first batch"
            )
            found = "none" if kinds[1] is None else f"{kinds[1][0]} {kinds[1][1]}"
            raise ValueError(mistake(f"{what} of {where}", expected, found))


def _labels_of(value: Any) -> Tensor | None:
    """int64 ``[B]``, or None if these are no integers."""
    if not (_is_array(value) or isinstance(value, list | tuple)):
        return None
    try:
        labels = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim != 1:
        return None
    return labels.detach().cpu().to(torch.int64)


def _named(classes: Any) -> tuple[str, ...] | None:
    if not isinstance(classes, list | tuple) or not classes:
        return None
    return tuple(str(name) for name in classes)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _described(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, Sequence) else type(value).__name__
