"""What `fastpure purify` reads: image files, folders of them, arrays; and how results become files of the same kind."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import final

import numpy as np
import torch
from torch import Tensor

from ...data.archive import affordable, open_regular
from ...data.jpeg_pack import is_jpeg_pack
from ...data.listing import left_out, walk
from ...data.numpy_files import Arrays, Choice, images_of
from ...data.pictures import IMAGE_SUFFIXES, PHOTOGRAPHS, Picture
from ...errors import DataError, mistake
from ...files import replacing

_ARRAY_SUFFIXES = (".npy", ".npz")
_PER_IMAGE = 512  # bytes that a run keeps for each image, in its batches and their ids
_IDS = ("sample_ids", "ids", "index")


@dataclass(frozen=True)
class Source(ABC):
    """One input file and its place in the output folder (``name``, relative)."""

    path: Path
    name: PurePosixPath

    @property
    @abstractmethod
    def count(self) -> int:
        """How many images it holds."""

    @abstractmethod
    def load(self, rows: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
        """Images ``rows`` as float32 ``[n, C, H, W]`` in [0, 1], of ``shape``; DataError says why not."""

    @abstractmethod
    def encode(self, images: Tensor) -> np.ndarray:
        """Purified images ``[n, C, H, W]`` in the file's own dtype and layout."""

    @abstractmethod
    def write(self, target: Path, encoded: np.ndarray) -> None:
        """Write all images of this file to ``target``, atomically."""

    @abstractmethod
    def named_ids(self) -> list[int]:
        """Sample ids that the file itself gives; DataError if it gives none."""

    def digest(self) -> str:
        """SHA-256 of the content."""
        with open_regular(self.path) as file:
            digest = hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()


@final
@dataclass(frozen=True)
class ImageFile(Source):
    """A picture. What comes out is an upright PNG with 8 bits per channel, whatever went in."""

    @property
    def count(self) -> int:
        """One."""
        return 1

    def load(self, rows: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
        """The picture, grey or in colour as ``shape`` asks for, with all bits it has."""
        channels, height, width = shape
        picture = Picture.open(self.path, PHOTOGRAPHS)
        if (picture.width, picture.height) != (width, height):
            found = f"{picture.width}x{picture.height}"
            remedy = "Use --fit tile, resize or crop"
            raise DataError(f"{self.path}: {found}, but the denoiser's images are {width}x{height}. {remedy}")
        return self._pixels(picture, channels)

    def whole(self, channels: int) -> Tensor:
        """The picture in its own size, float32 ``[1, channels, H, W]`` in [0, 1]."""
        return self._pixels(Picture.open(self.path, PHOTOGRAPHS), channels)

    def size(self) -> tuple[int, int]:
        """Height and width, of which the file's header tells."""
        picture = Picture.open(self.path, PHOTOGRAPHS)
        return picture.height, picture.width

    def _pixels(self, picture: Picture, channels: int) -> Tensor:
        if channels == 1 and not picture.grey:
            raise DataError(f"{self.path}: in colour, but the denoiser's images are grey")
        pixels = picture.array()
        values = pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 65535)
        return torch.from_numpy(values).expand(channels, *values.shape[1:])[None].contiguous()

    def encode(self, images: Tensor) -> np.ndarray:
        """uint8 ``[1, C, H, W]``."""
        return _bytes(images)

    def write(self, target: Path, encoded: np.ndarray) -> None:
        """A PNG file, grey where the picture is and the model's images are in colour: their mean.

        It keeps the colour profile, without which a phone's picture would look pale.
        """
        from PIL import Image

        picture = Picture.open(self.path, PHOTOGRAPHS)
        if picture.grey and encoded.shape[1] == 3:
            encoded = encoded.mean(1, keepdims=True).round().astype(np.uint8)
        profile = picture.profile(grey=encoded.shape[1] == 1)
        pixels = encoded[0, 0] if encoded.shape[1] == 1 else encoded[0].transpose(1, 2, 0)
        with replacing(target) as file:
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", icc_profile=profile)

    def named_ids(self) -> list[int]:
        """The last number in the file's name."""
        numbers = re.findall(r"\d+", self.path.stem)
        if not numbers:
            raise DataError(f"{self.path}: no number in the name to take as its id")
        return [int(numbers[-1])]


@final
@dataclass(frozen=True)
class ArrayFile(Source):
    """A ``.npy``, or an ``.npz`` of which one array holds the images and the others are kept as they are."""

    key: str | None = None

    @property
    def count(self) -> int:
        """Length of the first axis."""
        return self._arrays.headers[self.choice.name].shape[0]

    @property
    def kept(self) -> list[str]:
        """The other arrays."""
        return [name for name in self._arrays.headers if name != self.choice.name]

    @cached_property
    def choice(self) -> Choice:
        """Which array holds the images. Raises DataError if that cannot be told, or it cannot hold any."""
        if is_jpeg_pack(self._arrays.headers):
            raise DataError(f"{self.path}: a JPEG pack, not an array of images")
        choice = images_of(self._arrays, None if self.path.suffix.lower() == ".npy" else self.key)
        header = self._arrays.headers[choice.name]
        if not header.like_images or 0 in header.shape:
            raise DataError(
                f"{self.path}: expected uint8 or floating [N, C, H, W], [N, H, W, C] or [N, H, W], found {header}"
            )
        images = header.shape[0]
        affordable(_PER_IMAGE * images, self.path.stat().st_size, f"{self.path}: with {images} images, it")
        return choice

    @cached_property
    def _arrays(self) -> Arrays:
        return Arrays.open(self.path)

    @cached_property
    def _images(self) -> np.ndarray:
        return self._arrays.read(self.choice.name)

    def _channels_last(self, shape: tuple[int, int, int]) -> bool:
        channels, height, width = shape
        layouts = {(channels, height, width): False, (height, width, channels): True}
        if self._images.ndim == 3 and channels == 1 and self._images.shape[1:] == (height, width):
            return False
        if self._images.shape[1:] not in layouts:
            raise DataError(f"{self.path}: images {self._images.shape[1:]}, but the denoiser's are {shape}")
        return layouts[self._images.shape[1:]]

    def load(self, rows: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
        """These rows, bytes divided by 255."""
        last = self._channels_last(shape)
        part = self._images[list(rows)]
        values = part.astype(np.float32) / 255 if part.dtype == np.uint8 else part.astype(np.float32)
        if not (values.min() >= 0 and values.max() <= 1):  # written so that NaN fails too
            raise DataError(
                f"{self.path}: floating images must be in [0, 1], found {values.min()}..{values.max()}"
            )
        values = values[:, None] if values.ndim == 3 else values.transpose(0, 3, 1, 2) if last else values
        return torch.from_numpy(np.ascontiguousarray(values))

    def encode(self, images: Tensor) -> np.ndarray:
        """Rows as they stand in the file."""
        values = _bytes(images) if self._images.dtype == np.uint8 else images.clamp(0, 1).numpy()
        if self._images.ndim == 3:
            values = values[:, 0]
        elif values.shape[1:] != self._images.shape[1:]:
            values = values.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(values.astype(self._images.dtype))

    def write(self, target: Path, encoded: np.ndarray) -> None:
        """The same kind of file; an ``.npz`` keeps its other arrays, their order and whether it is compressed."""
        with replacing(target) as file:
            self._arrays.copy_to(file, self.choice.name, encoded)

    def named_ids(self) -> list[int]:
        """The array of ids in the file."""
        for name in _IDS:
            header = self._arrays.headers.get(name)
            if header is not None and header.dtype.kind in "iu" and header.shape == (self.count,):
                return [int(value) for value in self._arrays.read(name)]
        raise DataError(f"{self.path}: has no array of {self.count} ids ({' or '.join(_IDS)})")


def _bytes(images: Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def find_sources(inputs: Sequence[Path], key: str | None = None) -> list[Source]:
    """All input files, sorted by their names in the output folder.

    A single folder gives its files at their relative places; of several inputs, folders keep their own names. Links to
    folders are followed. ``key`` is the array of the ``.npz`` files that holds the images.

    Raises:
        DataError: an input is missing, of an unknown kind, or empty; or two of them would get one name.
    """
    if not inputs:
        raise ValueError(mistake("inputs", "at least one file or folder", "none"))
    found: list[Source] = []
    for path in inputs:
        if path.is_dir():
            parent = PurePosixPath() if len(inputs) == 1 else PurePosixPath(path.resolve().name)
            files = [file for file in walk(path) if _wanted(file, path)]
            found += [_source(file, parent / file.relative_to(path).as_posix(), key) for file in files]
            if not files:
                kinds = ", ".join((*IMAGE_SUFFIXES, *_ARRAY_SUFFIXES))
                raise DataError(
                    f"{path}: no images or arrays in this folder ({kinds})"
                    + left_out(walk(path), "; it holds ")
                )
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
        elif _wanted(path, path.parent):
            found.append(_source(path, PurePosixPath(path.name), key))
        else:
            kinds = f"neither an image ({', '.join(IMAGE_SUFFIXES)}) nor .npy nor .npz"
            raise DataError(f"{path}: {kinds}, or hidden. Rename or convert it")
    if key is not None and not any(source.path.suffix.lower() == ".npz" for source in found):
        raise ValueError(mistake("--key", "left out: no input is an .npz", repr(key)))
    taken: dict[PurePosixPath, Path] = {}
    for source in found:
        if source.name in taken:
            raise DataError(f"{taken[source.name]} and {source.path} would both become {source.name}")
        taken[source.name] = source.path
    return sorted(found, key=lambda source: source.name.as_posix())


def remarks(inputs: Sequence[Path], sources: Sequence[Source]) -> list[str]:
    """What would not be expected, a line each: pictures that change their format, an array chosen, files not read."""
    lines = []
    changed = [source for source in sources if source.path.suffix.lower() != source.name.suffix.lower()]
    if changed:
        example = f"{changed[0].path.name} becomes {changed[0].name.name}"
        lines.append(f"{len(changed)} pictures are written as PNG, which loses nothing: {example}")
    for source in sources:
        if isinstance(source, ArrayFile) and source.choice.why:
            kept = ", ".join(source.kept)
            lines.append(f"{source.path.name}: purifies {source.choice.why}; keeps {kept} as they are")
    others = [file for path in inputs if path.is_dir() for file in walk(path) if not _wanted(file, path)]
    return [*lines, left_out(others)] if others else lines


def _wanted(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.suffix.lower() in (*IMAGE_SUFFIXES, *_ARRAY_SUFFIXES)


def _source(path: Path, name: PurePosixPath, key: str | None) -> Source:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFile(path, name if name.suffix.lower() == ".png" else name.with_suffix(".png"))
    return ArrayFile(path, name, key)
