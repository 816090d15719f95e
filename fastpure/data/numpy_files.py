"""The one reader of ``.npy`` and ``.npz``: headers first, memory only for what they can mean, nothing unpickled.

`images_of` is the one answer to "which of these arrays are the images".
"""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, final

import numpy as np

from ..errors import DataError
from .regular import affordable, open_regular, reason, size_of

IMAGE_KEYS = ("images", "x", "data", "pixels")
"""Names under which an array of images is taken without asking, if it is the only one."""

_OURS = {"x", "x_adv", "labels", "sample_ids", "about"}
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_PLAIN = "biufcSU"  # booleans, numbers and text; everything else may hold Python objects
_EPOCH = (1980, 1, 1, 0, 0, 0)


@final
@dataclass(frozen=True)
class ArrayHeader:
    """What a file says of one array: its shape and type, and the bytes that it takes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def like_images(self) -> bool:
        """Whether it has the shape and type of images: ``[N, ., ., .]`` or ``[N, H, W]``, uint8 or floating."""
        return len(self.shape) in (3, 4) and (self.dtype == np.uint8 or self.dtype.kind == "f")

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@final
@dataclass(frozen=True)
class Arrays:
    """The arrays of a file, by name; a ``.npy`` has one, called "". None is read until `read` asks for it."""

    path: Path
    headers: dict[str, ArrayHeader]

    @staticmethod
    def open(path: str | Path, expected: str = "") -> Arrays:
        """Read the headers.

        Raises:
            DataError: no regular file, damaged, two arrays of one name, or a header that claims more than the file
                can hold (``.npy``) or than `affordable` allows (``.npz``).
        """
        file = Path(path)
        with _sentences(file), open_regular(file, expected) as stream:
            if _is_npy(file):
                return Arrays(file, {"": _lone(stream, file)})
            with zipfile.ZipFile(stream) as archive:
                return Arrays(file, _members(archive, file, size_of(stream)))

    def read(self, name: str) -> np.ndarray:
        """One array. Raises DataError: damaged, or of Python objects, which would have to be run to be read."""
        with _sentences(self.path), open_regular(self.path) as stream:
            if _is_npy(self.path):
                return _checked(stream, _lone(stream, self.path), self._called(name), rewind=True)
            with zipfile.ZipFile(stream) as archive, archive.open(f"{name}.npy") as member:
                return _checked(member, self.headers[name], self._called(name))

    def copy_to(self, target: IO[bytes], name: str, replacement: np.ndarray) -> None:
        """Write the file again with another array ``name``; the others are copied as bytes, in order and packing."""
        with _sentences(self.path), open_regular(self.path) as stream:
            if _is_npy(self.path):
                np.lib.format.write_array(target, replacement, allow_pickle=False)
                return
            with zipfile.ZipFile(stream) as archive, zipfile.ZipFile(target, "w") as result:
                for entry in archive.infolist():
                    kept = zipfile.ZipInfo(
                        entry.filename, _EPOCH
                    )  # no date, so that the bytes are always the same
                    kept.compress_type = entry.compress_type
                    with result.open(kept, "w", force_zip64=True) as into:
                        if entry.filename == f"{name}.npy":
                            np.lib.format.write_array(into, replacement, allow_pickle=False)
                        else:
                            with archive.open(entry) as member:
                                shutil.copyfileobj(member, into, 1 << 20)

    def _called(self, name: str) -> str:
        return f"{self.path}: {name}" if name else str(self.path)


@final
@dataclass(frozen=True)
class Choice:
    """The name of the array that holds the images, and why it was taken, in words; "" if there was no other."""

    name: str
    why: str = ""


def images_of(arrays: Arrays, key: str | None = None) -> Choice:
    """Which array holds the images: ``key``; the attacked ones of an archive of ``fastpure attack``; or the only one.

    Raises:
        DataError: there is no such array, none of images' shape under a known name (`IMAGE_KEYS`), or several.
    """
    headers, path = arrays.headers, arrays.path
    if key is not None:
        if key not in headers or "" in headers:
            found = "one array without a name" if "" in headers else _listed(headers)
            raise DataError(f"{path}: has no array {key!r} (`key`, --key); it has {found}")
        return Choice(key, f"{key}, as asked for")
    if "" in headers:
        return Choice("")
    if headers.keys() >= _OURS and headers["x"].shape == headers["x_adv"].shape:
        return Choice("x_adv", "x_adv, the attacked images of this archive of `fastpure attack`")
    likely = [name for name, header in headers.items() if header.like_images]
    if len(likely) > 1:
        found = ", ".join(f"{name} {headers[name]}" for name in likely)
        raise DataError(
            f"{path}: {len(likely)} arrays have the shape of images ({found}). Say which: `key` (on the command line: "
            "--key)"
        )
    named = [name for name in IMAGE_KEYS if name in headers]
    if len(named) != 1 or (likely and likely != named):
        expected = " or ".join(IMAGE_KEYS)
        problem = "lacks images" if not named else f"{' and '.join(named)} may be meant"
        raise DataError(
            f"{path}: {problem} ({expected}); it has {_listed(headers)}. Say which: `key` (on the command line: --key)"
        )
    return Choice(named[0])


def _listed(headers: dict[str, ArrayHeader]) -> str:
    names = list(headers)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _is_npy(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """What zipfile, zlib and numpy raise for damaged files (about every type there is), as one sentence."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        kind = ".npy" if _is_npy(path) else ".npz"
        # numpy's remedies (allow_pickle, max_header_size) are none for a file of others
        said = reason(error).partition(". ")[0]
        raise DataError(f"{path}: cannot be read as {kind}: {said}") from error


def _lone(stream: BinaryIO, path: Path) -> ArrayHeader:
    header = _header(stream, str(path))
    held = size_of(stream) - stream.tell()
    if header.size != held and not header.dtype.hasobject:
        raise DataError(
            f"{path}: cannot be read as .npy: announces {header}, {header.size} bytes, and holds {held}; expected one "
            "whole array"
        )
    return header


def _members(archive: zipfile.ZipFile, path: Path, size: int) -> dict[str, ArrayHeader]:
    headers: dict[str, ArrayHeader] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        affordable(entry.file_size, size, f"{path}: {name}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{path}: {name} is packed in a way that numpy never writes. Save it again (numpy.savez)"
            )
        if name == entry.filename:
            continue  # not an array; copied, never read
        if name in headers:
            raise DataError(f"{path}: holds {name} twice")
        with archive.open(entry) as member:
            header = _header(member, f"{path}: {name}")
            held = entry.file_size - member.tell()
        if header.size != held and not header.dtype.hasobject:
            raise DataError(
                f"{path}: cannot be read as .npz: {name} announces {header}, {header.size} bytes, and holds {held}"
            )
        headers[name] = header
    return headers


def _header(stream: IO[bytes], name: str) -> ArrayHeader:
    version = np.lib.format.read_magic(stream)
    if version not in _READERS:
        raise DataError(
            f"{name}: has records with named fields (format {version}); expected an array of numbers"
        )
    shape, _, dtype = _READERS[version](stream)
    header = ArrayHeader(tuple(int(length) for length in shape), np.dtype(dtype))
    if any(length < 0 for length in header.shape) or (
        header.dtype.itemsize == 0 and math.prod(header.shape) > 1
    ):
        raise DataError(f"{name}: announces {header}, which no array has")
    return header


def _checked(stream: IO[bytes], header: ArrayHeader, called: str, rewind: bool = False) -> np.ndarray:
    if header.dtype.kind not in _PLAIN:
        raise DataError(f"{called}: holds {header}, not numbers or text; Python objects are never run")
    if rewind:
        stream.seek(0)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    stream.read(1)  # the end, where zipfile compares the checksum
    if array.shape != header.shape or array.dtype != header.dtype:
        raise DataError(f"{called}: changed while it was read")
    return array
