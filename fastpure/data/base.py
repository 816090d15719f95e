"""`Dataset`: labelled images as one tensor, with integers that name the images for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, mistake, whole
from ..shown import LISTED, Card, Grid, Shown, size
from .pictures import TORCHVISION, Picture

MOST_CLASSES = 2**17
"""How many classes are numbered where they have no names (ImageNet-21k has 21,841)."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Shown):
    """Labelled images. Pixels are kept as they came (bytes stay bytes) and become [0, 1] on request.

    Fields:
        pixels: uint8 ``[N, C, H, W]`` in ``0..levels``, or float32 ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]`` in ``0..len(classes) - 1``.
        sample_ids: int64 ``[N]``, distinct, not negative. They stay with their image through every
            selection, and key its noise (``Purifier(x, sample_ids=...)``).
        classes: one name per label.
        name, split: where the images come from, for reports.
        levels: the byte value that stands for 1.0 (255 for photographs, 16 for digits).
        note: which array was taken, and what else was there and was not read; in words, empty if nothing.
        named_by: the folder whose class folders gave the class names; empty where the data bring or somebody gave them.

    Two data sets are the same when their `checksum` is; ``==`` compares identity only.

    Raises:
        TypeError, ValueError: a field has the wrong type, shape or range; the message names it.
    """

    pixels: Tensor
    labels: Tensor
    sample_ids: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    levels: int = 255
    note: str = ""
    named_by: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(str(label) for label in self.classes))
        whole("levels", self.levels, 1, 255)
        _check_pixels(self.pixels, self.levels)
        count = self.pixels.shape[0]
        for argument, value in (("labels", self.labels), ("sample_ids", self.sample_ids)):
            if not isinstance(value, Tensor) or value.dtype != torch.int64:
                raise TypeError(mistake(argument, "an int64 tensor", _kind(value)))
            if value.shape != (count,):
                raise ValueError(mistake(argument, f"of shape [{count}]", list(value.shape)))
        if count == 0:
            return
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(
                mistake(
                    "labels", f"in 0..{len(self.classes) - 1}", f"{self.labels.min()}..{self.labels.max()}"
                )
            )
        if self.sample_ids.min() < 0 or torch.unique(self.sample_ids).numel() != count:
            raise ValueError(mistake("sample_ids", "distinct and not negative", "repeated or negative ones"))

    def _shown(self) -> Card:
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        n = len(self.classes)
        classes = f"{n}: " + ", ".join(self.classes[:LISTED]) + (", …" if n > LISTED else "")
        pixels = f"bytes 0 to {self.levels}" if self.pixels.dtype == torch.uint8 else "float32 in [0, 1]"
        note = [("note", self.note)] if self.note else []
        most = sorted(zip(self.classes, counts, strict=True), key=lambda pair: -pair[1])[:LISTED]
        return Card(
            f"Dataset {self.name}/{self.split}: {len(self)} images of {size(self.image_shape)}",
            (("pixels", pixels), ("classes", classes), ("sample ids", _ids(self.sample_ids)), *note),
            (("checksum", self.checksum[:12]),) if "checksum" in self.__dict__ else (),  # it reads all pixels
            (Grid("most frequent classes", ("", "images"), tuple((name, str(k)) for name, k in most)),),
        )

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @cached_property
    def images(self) -> Tensor:
        """All images, float32 ``[N, C, H, W]`` in [0, 1]. Keeps a copy: see `batch`."""
        return _unit_range(self.pixels, self.levels)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 (hexadecimal) of pixels, labels, sample ids and class names."""
        digest = hashlib.sha256(
            repr((tuple(self.pixels.shape), str(self.pixels.dtype), self.levels)).encode()
        )
        for tensor in (self.pixels, self.labels, self.sample_ids):
            array = np.ascontiguousarray(tensor.cpu().numpy())
            if array.size:
                digest.update(
                    array.reshape(-1).view(np.uint8).data
                )  # not a copy: pixels may be a mapped file
        digest.update("\n".join(self.classes).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def fits(self, n_classes: int) -> None:
        """Refuse a network of more classes than there are class folders: labels are positions among these.

        Raises:
            ValueError: ``n_classes`` is larger than the number of classes, and folders gave these.
        """
        if self.named_by and n_classes > len(self.classes):
            expected = f"a classifier of the {len(self.classes)} classes that {self.named_by} has folders of"
            remedy = (
                "Labels are positions among these folders: make a folder `train` beside those of the split with one "
                "for each class of the network (may be empty), or give `classes` to fastpure.data.read_image_folder"
            )
            raise ValueError(mistake("defense", expected, f"{n_classes} classes", remedy))

    def batch(self, rows: Tensor) -> Tensor:
        """The images at positions ``rows`` (int64 ``[B]``), float32 ``[B, C, H, W]`` in [0, 1]."""
        return _unit_range(self.pixels[rows], self.levels)

    def select(self, rows: Tensor | np.ndarray | Sequence[int]) -> Dataset:
        """The data set made of the images at positions ``rows``, in that order, ids kept.

        Raises:
            ValueError: a position is outside ``0..len(self) - 1``, or occurs twice.
        """
        wanted = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        if wanted.ndim != 1 or (wanted.numel() and (wanted.min() < 0 or wanted.max() >= len(self))):
            raise ValueError(mistake("rows", f"a vector of positions in 0..{len(self) - 1}", rows))
        return replace(
            self, pixels=self.pixels[wanted], labels=self.labels[wanted], sample_ids=self.sample_ids[wanted]
        )

    def subset(self, n: int, data_seed: int = 0, population: int | None = None) -> Dataset:
        """``n`` images chosen as the purification literature chooses its evaluation subset.

        The positions are ``np.random.RandomState(data_seed).choice(len(self), n, replace=False)``, in
        that order; with the 10,000 CIFAR-10 test images, ``n=512, data_seed=0`` gives the subset of
        DiffPure and COUP.

        Args:
            population: the choice depends on how many images there are. If this is only a part of a data
                set, give the size of the whole: ids are then chosen among ``0..population - 1``, and those of
                them that are here are returned, which may be fewer than ``n``.

        Raises:
            TypeError, ValueError: ``n`` is not an integer in ``1..len(self)`` (or ``1..population``).
        """
        if population is None:
            return self.select(literature_rows(len(self), n, data_seed))
        position = {int(name): row for row, name in enumerate(self.sample_ids)}
        chosen = literature_rows(whole("population", population, 1), n, data_seed)
        return self.select([position[int(name)] for name in chosen if int(name) in position])

    @staticmethod
    def from_torch(source: Any, **options: Any) -> Dataset:
        """Any torch Dataset of (image, label); options and errors are those of ``fastpure.data.from_torch``."""
        return from_torch(source, **options)

    def describe(self) -> str:
        """One line for logs and reports."""
        shape = "x".join(str(size) for size in self.image_shape)
        return (
            f"{self.name}/{self.split}: {len(self)} images {shape}, {len(self.classes)} classes, "
            f"checksum {self.checksum[:12]}" + (f" ({self.note})" if self.note else "")
        )


def literature_rows(count: int, n: int, data_seed: int) -> np.ndarray:
    """Positions of the ``n`` out of ``count`` images that `Dataset.subset` takes, int64, in its order."""
    whole("n", n, 1, count)
    whole("data_seed", data_seed, 0, 2**32 - 1)
    return np.random.RandomState(data_seed).choice(count, n, replace=False)


def numbered(top: int, remedy: str = "give `classes`") -> tuple[str, ...]:
    """Class names for labels up to ``top`` that come without. Raises DataError: so many that they can be no labels."""
    if top >= MOST_CLASSES:
        raise DataError(
            f"labels up to {top} without class names; expected at most {MOST_CLASSES - 1}: {remedy}"
        )
    return tuple(map(str, range(top + 1)))


def class_names(names: np.ndarray, source: str) -> tuple[str, ...]:
    """Class names out of a file's array of text or numbers. Raises DataError: more than anybody has."""
    if names.ndim != 1 or names.size > MOST_CLASSES:
        raise DataError(
            f"{source}: class names are {names.shape}, expected a vector of at most {MOST_CLASSES}"
        )
    return tuple(
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names.tolist()
    )


FAINT = 16
"""Bytes that never exceed this are levels of something else: binary images, scikit-learn's digits."""


def faint(pixels: Tensor) -> str:
    """What is strange about bytes that are nearly black if 255 is white, in words; "" if nothing is."""
    top = int(pixels.max()) if pixels.dtype == torch.uint8 and pixels.numel() else 255
    if not 0 < top <= FAINT:
        return ""
    remedy = "images of other levels are to be divided by their highest"
    return f"no byte exceeds {top}, though 255 is read as white: {remedy}"


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _unit_range(pixels: Tensor, levels: int) -> Tensor:
    return pixels.to(torch.float32) / levels if pixels.dtype == torch.uint8 else pixels


def _ids(ids: Tensor) -> str:
    return f"{int(ids.min())} to {int(ids.max())}" if len(ids) else "none"


def _check_pixels(pixels: Tensor, levels: int) -> None:
    if not isinstance(pixels, Tensor) or pixels.dtype not in (torch.uint8, torch.float32):
        raise TypeError(mistake("pixels", "a uint8 or float32 tensor", _kind(pixels)))
    if pixels.ndim != 4:
        raise ValueError(mistake("pixels", "of shape [N, C, H, W]", list(pixels.shape)))
    if pixels.numel() == 0 or (pixels.dtype == torch.uint8 and levels == 255):
        return
    top = levels if pixels.dtype == torch.uint8 else 1
    low, high = cast("tuple[Tensor, Tensor]", torch.aminmax(pixels))
    if not (low >= 0 and high <= top):  # written so that NaN fails too
        raise ValueError(mistake("pixels", f"in 0..{top}", f"{low.item()}..{high.item()}"))


def from_torch(
    source: Any,
    *,
    name: str | None = None,
    split: str = "test",
    rows: Iterable[int] | None = None,
    classes: Sequence[str] | None = None,
    named: bool = False,
) -> Dataset:
    """The items ``(image, label)`` of a map-style torch Dataset.

    Args:
        source: has ``len`` and indexing. Images are PIL images (decoded as `fastpure.data.pictures` says: palettes
            through their colours, 16-bit grey as float32, transparency on white) or uint8 arrays ``[H, W, C]`` or
            ``[H, W]``, or tensors ``[C, H, W]``: uint8, or floating in [0, 1] (not normalised). Labels are integers.
        name, split: for reports; the class of ``source`` if ``name`` is None.
        rows: which positions to read; all if None.
        classes: class names; ``source.classes`` or numbers if None.
        named: items are (image, label, id) with an integer that names the image; else what follows a label is ignored.

    Returns:
        The data set in the order of ``rows``; ``sample_ids`` are the positions in ``source``, with ``named`` the ids.

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
    ids = chosen if not named else []
    for row in chosen:
        image, label, sample_id = _item(source, row, named)
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            found = f"{image.dtype} {list(image.shape)}"
            raise DataError(
                f"item {row} is {found}, item {chosen[0]} {images[0].dtype} {list(images[0].shape)}"
            )
        images.append(image)
        labels.append(label)
        if named:
            ids.append(sample_id)
    names = classes if classes is not None else getattr(source, "classes", None)
    folder = class_folder(source) if classes is None else ""
    try:
        return Dataset(
            pixels=torch.stack(images),
            labels=torch.tensor(labels, dtype=torch.int64),
            sample_ids=torch.tensor(ids, dtype=torch.int64),
            classes=numbered(max(labels)) if names is None else tuple(map(str, names)),
            name=name or type(source).__name__,
            split=split,
            named_by=folder,
        )
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # torch's word for a label of 2**63
        raise DataError(f"{type(source).__name__}: {error}") from error


def class_folder(source: Any) -> str:
    """The folder whose class folders number the labels of a torch data set, as torchvision's ``ImageFolder`` has it; ""
    where something else does: the data, or a ``target_transform``."""
    likewise = all(hasattr(source, name) for name in ("root", "samples", "class_to_idx"))
    return str(source.root) if likewise and getattr(source, "target_transform", None) is None else ""


def _item(source: Any, row: int, named: bool) -> tuple[Tensor, int, int]:
    item = source[row]
    if not isinstance(item, tuple | list) or len(item) < 2 + named:
        expected = "(image, label, id)" if named else "(image, label)"
        raise DataError(f"item {row} is {_kind(item)}, expected {expected}")
    try:
        label = int(item[1])
        whole_number = float(item[1]) == label  # int() cuts off what follows the point
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"item {row} has label {item[1]!r}, expected an integer") from error
    if not whole_number:
        raise DataError(f"item {row} has label {item[1]!r}, expected an integer")
    try:
        sample_id = index(item[2]) if named else row
    except TypeError as error:
        remedy = "Give items (image, label), or call fastpure.data.from_torch, which ignores what follows"
        raise DataError(f"item {row} has id {item[2]!r}, expected an integer. {remedy}") from error
    return _image(item[0], row), label, sample_id


def _image(image: Any, row: int) -> Tensor:
    if not isinstance(image, Tensor):
        image = torch.from_numpy(_array(image, row))
    if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise DataError(
            f"item {row} is {image.dtype} {list(image.shape)}, expected uint8 or floating [C, H, W]"
        )
    if image.shape[0] not in (1, 3) and image.shape[2] in (1, 3):
        raise DataError(f"item {row} is {list(image.shape)}, expected the channels first: [C, H, W]")
    return image if image.dtype == torch.uint8 else image.to(torch.float32)


def _array(image: Any, row: int) -> np.ndarray:
    """``[C, H, W]``: uint8, or float32 for 16-bit pictures."""
    if hasattr(image, "getbands"):  # a PIL image; Pillow is not asked for otherwise
        pixels = Picture(image, f"item {row}", TORCHVISION).array()
        return pixels.copy() if pixels.dtype == np.uint8 else pixels.astype(np.float32) / 65535
    array = np.array(image)
    coloured = array.ndim == 3 and array.shape[2] in (1, 3)
    if array.dtype != np.uint8 or not (array.ndim == 2 or coloured):
        raise DataError(
            f"item {row} is {array.dtype} {array.shape}, expected uint8 [H, W, C] with 1 or 3 channels, or [H, W]"
        )
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy()
