"""What `fastpure purify` reads: image files, folders of them, arrays; and how results become files of the same kind."""

from __future__ import annotations

import hashlib
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import final

import numpy as np
import torch
from torch import Tensor

from ..data.arrays import IMAGE_KEYS, read_npy
from ..data.image_folder import IMAGE_SUFFIXES
from ..data.jpeg_pack import is_jpeg_pack
from ..errors import DataError, mistake
from ..files import replacing

__all__ = ["ArrayFile", "ImageFile", "Source", "find_sources"]

_IDS = ("sample_ids", "ids", "index")
_MODES = {1: "L", 3: "RGB"}


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
        with self.path.open("rb") as file:
            digest = hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()


@final
@dataclass(frozen=True)
class ImageFile(Source):
    """A picture. What comes out is PNG with 8 bits per channel, whatever went in."""

    @property
    def count(self) -> int:
        """One."""
        return 1

    def load(self, rows: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
        """The picture, grey or in colour as ``shape`` asks for."""
        from PIL import Image

        channels, height, width = shape
        try:
            with Image.open(self.path) as image:
                if image.size != (width, height):
                    found = f"{image.size[0]}x{image.size[1]}"
                    raise DataError(f"{self.path}: {found}, but the denoiser's images are {width}x{height}")
                if "A" in image.mode or "transparency" in image.info or image.mode.startswith(("I", "F")):
                    raise DataError(f"{self.path}: mode {image.mode}; expected 8 bits and no transparency")
                if channels == 1 and image.mode not in ("L", "1"):
                    raise DataError(f"{self.path}: in colour, but the denoiser's images are grey")
                pixels = np.array(image.convert(_MODES[channels]))
        except DataError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.path}: cannot be decoded as an image: {error}") from error
        pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(pixels[None].astype(np.float32) / 255)

    def encode(self, images: Tensor) -> np.ndarray:
        """uint8 ``[1, C, H, W]``."""
        return _bytes(images)

    def write(self, target: Path, encoded: np.ndarray) -> None:
        """A PNG file."""
        from PIL import Image

        pixels = encoded[0, 0] if encoded.shape[1] == 1 else encoded[0].transpose(1, 2, 0)
        with replacing(target) as file:
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")

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

    @property
    def count(self) -> int:
        """Length of the first axis."""
        return len(self._images)

    @cached_property
    def _archive(self) -> dict[str, np.ndarray]:
        if self.path.suffix.lower() == ".npy":
            return {"": read_npy(self.path)}
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # damaged archives raise about every type there is
            raise DataError(f"{self.path}: cannot be read as .npz: {error}") from error

    @cached_property
    def _key(self) -> str:
        if "" in self._archive:
            return ""
        if is_jpeg_pack(self._archive):
            raise DataError(f"{self.path}: a JPEG pack, not an array of images")
        names = [name for name in IMAGE_KEYS if name in self._archive]
        if not names:
            found = ", ".join(self._archive)
            raise DataError(f"{self.path}: lacks images ({' or '.join(IMAGE_KEYS)}); it has {found}")
        return names[0]

    @cached_property
    def _images(self) -> np.ndarray:
        images = self._archive[self._key]
        if images.ndim not in (3, 4) or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
            found = f"{images.dtype} {images.shape}"
            raise DataError(
                f"{self.path}: expected uint8 or floating [N, C, H, W], [N, H, W, C] or [N, H, W], found {found}"
            )
        return images

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
            if self._key == "":
                np.save(file, encoded)
                return
            arrays = {**self._archive, self._key: encoded}
            with zipfile.ZipFile(self.path) as archive:
                packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            (np.savez_compressed if packed else np.savez)(file, **arrays)  # type: ignore[arg-type]

    def named_ids(self) -> list[int]:
        """The array of ids in the file."""
        for name in _IDS:
            ids = self._archive.get(name)
            if ids is not None and ids.dtype.kind in "iu" and ids.shape == (self.count,):
                return [int(value) for value in ids]
        raise DataError(f"{self.path}: has no array of {self.count} ids ({' or '.join(_IDS)})")


def _bytes(images: Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """All input files, sorted by their names in the output folder.

    A single folder gives its files at their relative places; of several inputs, folders keep their own names.

    Raises:
        DataError: an input is missing, of an unknown kind, or empty; or two of them would get one name.
    """
    if not inputs:
        raise ValueError(mistake("inputs", "at least one file or folder", "none"))
    found: list[Source] = []
    for path in inputs:
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.is_file() and _wanted(file, path)]
            if not files:
                kinds = ", ".join((*IMAGE_SUFFIXES, ".npy", ".npz"))
                raise DataError(f"{path}: no images or arrays in this folder ({kinds})")
            parent = PurePosixPath() if len(inputs) == 1 else PurePosixPath(path.resolve().name)
            found += [_source(file, parent / file.relative_to(path).as_posix()) for file in files]
        elif not path.is_file():
            raise DataError(f"{path}: no such file or folder")
        elif _wanted(path, path.parent):
            found.append(_source(path, PurePosixPath(path.name)))
        else:
            raise DataError(f"{path}: neither an image ({', '.join(IMAGE_SUFFIXES)}) nor .npy nor .npz")
    taken: dict[PurePosixPath, Path] = {}
    for source in found:
        if source.name in taken:
            raise DataError(f"{taken[source.name]} and {source.path} would both become {source.name}")
        taken[source.name] = source.path
    return sorted(found, key=lambda source: source.name.as_posix())


def _wanted(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.suffix.lower() in (*IMAGE_SUFFIXES, ".npy", ".npz")


def _source(path: Path, name: PurePosixPath) -> Source:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFile(path, name if name.suffix.lower() == ".png" else name.with_suffix(".png"))
    return ArrayFile(path, name)
