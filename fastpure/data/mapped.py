"""Decoded pictures: in memory, or, where they are many, in a file that is mapped and found again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import disk
from ..progress import Progress

LARGE = 2**28
"""Bytes of pixels beyond which a mapped file is used, where there is a folder for it."""

_MANY = 5000
"""Pictures from which on progress is shown."""


def decoded(
    files: Sequence[Path],
    decode: Callable[[Path], np.ndarray],
    root: Path,
    keep: str | Path | None = None,
    settings: Any = None,
) -> np.ndarray:
    """The pictures, uint8 ``[N, C, H, W]``, all of the first one's shape.

    Args:
        keep: as for `read_image_folder`; ``settings`` then say how they are decoded.

    Raises:
        DataError: a picture has another shape, or the memory is not enough.
        StoreUnavailable, DiskFull: the mapped file cannot be written.
    """
    first = decode(files[0])
    shape = (len(files), *first.shape)
    if keep is None or int(np.prod(shape, dtype=np.int64)) <= LARGE:
        pixels = _room(shape, root)
        _fill(pixels, files, decode)
        return pixels
    path = Path(keep) / f"pixels-{_key(files, root, shape, settings)}.npy"
    if not path.is_file():
        partial = path.with_name(f".{path.stem}.{os.getpid()}.partial")
        with disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            written = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        try:
            _fill(written, files, decode)
            with disk(path):
                written.flush()
                del written
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    # Copy on write: nothing that happens to the tensor reaches the file.
    return np.load(path, mmap_mode="c", allow_pickle=False)


def _fill(pixels: np.ndarray, files: Sequence[Path], decode: Callable[[Path], np.ndarray]) -> None:
    with Progress(len(files), "pictures", doing="reading", shown=len(files) >= _MANY) as bar:
        for position, path in enumerate(files):
            image = decode(path)
            if image.shape != pixels.shape[1:]:
                expected, found = ("x".join(map(str, shape)) for shape in (pixels.shape[1:], image.shape))
                raise DataError(f"{path}: {found}, the first one is {expected}; give `resize` and `crop`")
            pixels[position] = image
            bar.step()


def _key(files: Sequence[Path], root: Path, shape: tuple[int, ...], settings: Any) -> str:
    """Names, sizes and times of the files and how they are decoded, as 16 digits."""
    digest = hashlib.sha256(repr((shape, settings)).encode())
    for path in files:
        status = path.stat()
        name = str(path.relative_to(root)).encode(errors="surrogateescape")
        digest.update(name + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _room(shape: tuple[int, ...], root: Path) -> np.ndarray:
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        needed = float(np.prod(shape, dtype=float)) / 1e9
        raise DataError(
            f"{root}: {shape[0]} images of {'x'.join(map(str, shape[1:]))} need {needed:.1f} GB of memory, which is "
            "not there. Take fewer with `n`"
        ) from error
