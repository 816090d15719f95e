"""The one listing of folders: the files of torchvision's ``ImageFolder`` in its order, and a word on all others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ..errors import DataError
from .pictures import IMAGE_SUFFIXES

UNREAD = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jp2", ".jxl", ".svg", ".tga", ".psd", ".ico", ".webm")
"""Suffixes of pictures that are not read; they are counted by their own, since they may be missed."""


@final
@dataclass(frozen=True)
class Listing:
    """What a folder of class folders holds.

    Fields:
        files: (path, label) of every picture.
        classes: names of the class folders, sorted; labels are positions in it.
        note: what else is there and is not read, in words; empty if nothing is.
    """

    files: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]
    note: str


def list_classes(root: Path) -> Listing:
    """Pictures in the class folders of ``root``, at any depth.

    Every folder in ``root`` is a class, hidden ones included, in the order of their names; its pictures are sorted by
    folder (as text), then by name; links to folders are followed. This is the order of
    ``torchvision.datasets.ImageFolder``, on which positions in published subsets depend.

    Raises:
        DataError: no class folder, a class without pictures (torchvision refuses it too, since its label would never
            occur), a folder that cannot be listed, or one that links back to a folder around it.
    """
    folders: list[str] = []
    beside: list[str] = []
    for entry in _scan(root):
        (folders if _is_folder(entry) else beside).append(entry.name)
    if not folders:
        raise DataError(f"{root}: holds no subfolders; expected one per class")
    files: list[tuple[Path, int]] = []
    others = [Path(name) for name in beside]
    empty = []
    for label, name in enumerate(sorted(folders)):
        before = len(files)
        for path in walk(root / name):
            if _is_picture(path):
                files.append((path, label))
            else:
                others.append(path)
        if len(files) == before:
            empty.append(name)
    if empty:
        raise DataError(
            f"{root}: no image files ({', '.join(IMAGE_SUFFIXES)}) in the class folder{'s' * (len(empty) > 1)} "
            f"{_some(empty)}{left_out(others, '. What is there: ')}. Every folder is a class: move those that are none"
        )
    pictures_beside = sum(_is_picture(Path(name)) for name in beside)
    note = left_out(others)
    if pictures_beside:
        note += f"; {pictures_beside} of them pictures in no class folder"
    return Listing(tuple(files), tuple(sorted(folders)), note)


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the class folders of ``root``, sorted, whatever is in them. Raises DataError: it cannot be listed."""
    return tuple(sorted(entry.name for entry in _scan(root) if _is_folder(entry)))


def walk(top: Path) -> Iterator[Path]:
    """Everything below ``top`` that is not a folder: sorted by folder, as text, then by name. Nothing is opened.

    Raises:
        DataError: a folder cannot be listed, or links back to one around it, so that the walk would not end.
    """
    found: list[tuple[str, list[str]]] = []
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(os.fspath(top), ())]
    while waiting:
        folder, around = waiting.pop()
        here = _identity(folder)
        if here in around:
            raise DataError(
                f"{folder}: links back to a folder around it; expected folders that end. Remove the link"
            )
        names = []
        for entry in _scan(Path(folder)):
            if _is_folder(entry):
                waiting.append((os.path.join(folder, entry.name), (*around, here)))
            else:
                names.append(entry.name)
        found.append((folder, names))
    for folder, names in sorted(found):
        for name in sorted(names):
            yield Path(folder, name)


def contents(folder: Path) -> list[Path]:
    """What is in ``folder`` itself, sorted. Raises DataError: it cannot be listed."""
    return [folder / name for name in sorted(entry.name for entry in _scan(folder))]


def left_out(files: Iterable[Path], before: str = "not read: ") -> str:
    """How many files of which kinds, in words; empty for none."""
    counts = Counter(path.suffix.lower() or path.name for path in files)
    if not counts:
        return ""
    total, pictures = sum(counts.values()), sum(counts[suffix] for suffix in UNREAD)
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
    rest = total - sum(number for _, number in most)
    return (
        f"{before}{total} file{'s' * (total != 1)} ("
        + ", ".join(f"{number} {kind}" for kind, number in most)
        + (f", {rest} others" if rest else "")
        + ")"
        + (f", of which {pictures} pictures of kinds that are not decoded" if pictures else "")
    )


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file for os.walk too, refused if it is ever opened
        return False


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from error


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES)  # not by suffix: torchvision takes a file called ".png"


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
