"""Purifying many files so that a run can be killed at any moment and continued to the same bytes.

Images are numbered over all inputs and purified in batches fixed by these numbers. A result that is there is
complete, since every file is written aside and renamed. After a kill, a batch with missing results is purified
whole again, so that each image is computed in the same company as in an unbroken run. Pieces of arrays wait in a
hidden folder until their array is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, ResumeError, mistake
from ...files import PARTIAL, FileLock, disk, replace_file, replacing
from .fitting import APART, fitted
from .inputs import ImageFile, Source

CONVENTIONS = "conventions"
"""Entry of the networks for what a denoiser is besides its weights: configuration, class label, schedule."""

RUN_FILE = "fastpure-purify.json"
PIECES = ".fastpure-pieces"
_CHECKED_AT_ONCE = 256


@final
@dataclass(frozen=True)
class Piece:
    """The images of one batch that come from one source: which of its rows, and their sample ids."""

    source: int
    rows: tuple[int, ...]
    ids: tuple[int, ...]


Batch = tuple[Piece, ...]


def _batch(places: list[tuple[int, int, int]]) -> Batch:
    """The pieces of a batch of (source, row, id)."""
    pieces: dict[int, list[tuple[int, int]]] = {}
    for source, row, number in places:
        pieces.setdefault(source, []).append((row, number))
    return tuple(
        Piece(source, tuple(row for row, _ in entries), tuple(number for _, number in entries))
        for source, entries in pieces.items()
    )


@final
@dataclass(frozen=True)
class PurifyRun:
    """A run into the folder ``out``.

    Fields:
        settings: everything the results depend on; kept in a file beside them and compared on continuing.
        shape: of the images, (C, H, W).
        draws: how many realisations of the noise; several go into folders draw0, draw1, ...
        ids: "position" among all images, or "names": numbers that the files give.
        fit: what is done with pictures of another size, one of ``FITS``; None refuses them.
    """

    sources: tuple[Source, ...]
    out: Path
    settings: dict[str, Any]
    shape: tuple[int, int, int]
    batch_size: int = 16
    draws: int = 1
    ids: str = "position"
    fit: str | None = None

    @cached_property
    def broken(self) -> dict[int, str]:
        """Sources that cannot be purified, by index, and why. Every image is read once.

        Raises:
            DataError: none can.
        """
        found: dict[int, str] = {}
        for index, source in enumerate(self.sources):
            try:
                for start in range(0, source.count, _CHECKED_AT_ONCE):
                    self._load(source, range(start, min(start + _CHECKED_AT_ONCE, source.count)))
            except DataError as error:
                if len(self.sources) == 1:
                    raise
                found[index] = str(error)
        if len(found) == len(self.sources):
            raise DataError(f"none of the {len(found)} inputs can be purified. The first: {found[0]}")
        return found

    @cached_property
    def apart(self) -> frozenset[int]:
        """Pictures of another size than the model's, which are purified one by one."""
        if self.fit not in APART:
            return frozenset()
        return frozenset(
            i
            for i, source in enumerate(self.sources)
            if i not in self.broken and isinstance(source, ImageFile) and source.size() != self.shape[1:]
        )

    def _load(self, source: Source, rows: Sequence[int]) -> Tensor:
        if self.fit is None or not isinstance(source, ImageFile) or source.size() == self.shape[1:]:
            return source.load(rows, self.shape)
        return fitted(source.whole(self.shape[0]), self.fit, self.shape, str(source.path))

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """All images in order, cut into batches. Raises DataError where ids are not distinct or too large."""
        # A picture that cannot be read keeps its number, so that the others' noise does not depend on it.
        counts = [
            1 if isinstance(source, ImageFile) else 0 if i in self.broken else source.count
            for i, source in enumerate(self.sources)
        ]
        places = [(i, row) for i, count in enumerate(counts) for row in range(count)]
        ids = list(range(len(places)))
        if self.ids == "names":
            ids = [
                number
                for i, source in enumerate(self.sources)
                for number in (source.named_ids() if i not in self.broken else [0] * counts[i])
            ]
        usable = [
            (*place, number) for place, number in zip(places, ids, strict=True) if place[0] not in self.broken
        ]
        ids = [number for *_, number in usable]
        if len(set(ids)) != len(ids) or any(not 0 <= number < 2**32 for number in ids):
            raise DataError(
                "the ids in the inputs are not distinct numbers in [0, 2**32). Use --ids position"
            )
        groups: list[list[tuple[int, int, int]]] = [[]]
        for place in usable:
            alone = place[0] in self.apart
            if groups[-1] and (alone or len(groups[-1]) == self.batch_size or groups[-1][0][0] in self.apart):
                groups.append([])
            groups[-1].append(place)
        return tuple(_batch(group) for group in groups if group)

    @property
    def total(self) -> int:
        """Results of the whole run: images times draws."""
        usable = (source for i, source in enumerate(self.sources) if i not in self.broken)
        return self.draws * sum(source.count for source in usable)

    def check(self) -> None:
        """Read every image once, so that what is unusable is found before hours of work, not after."""
        _ = self.broken, self.batches

    def target(self, draw: int, source: int) -> Path:
        """Where a source's result goes."""
        folder = self.out / f"draw{draw}" if self.draws > 1 else self.out
        return folder / self.sources[source].name

    @contextmanager
    def opened(self, force: bool = False) -> Iterator[bool]:
        """Hold the folder for this run; gives whether an earlier run of the same settings is continued.

        Raises:
            ValueError: the folder is an input, or lies in one.
            RunLocked: another process holds it.
            ResumeError: it belongs to other settings, or files that this run would write are there without being
                its own; ``force`` starts over instead.
            StoreUnavailable, DiskFull: it cannot be written; what is finished stays.
        """
        self._keep_inputs()
        with disk(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.out / RUN_FILE)
        try:
            with disk(self.out):
                continued = self._claim(force)
            yield continued
        finally:
            pieces = self.out / PIECES
            if not any(pieces.glob("*.npy")):
                shutil.rmtree(pieces, ignore_errors=True)
            lock.release()

    def execute(self, purify: Callable[[Tensor, list[int], int], Tensor], done: Callable[[int], None]) -> int:
        """Purify what is missing; gives how many results that were.

        Args:
            purify: (images [B, C, H, W], sample ids, draw) -> images.
            done: called with the number of results finished, also of those that were there.
        """
        purified = 0
        for draw in range(self.draws):
            for batch in self.batches:
                size = sum(len(piece.rows) for piece in batch)
                if self._missing(draw, batch):
                    loaded = [self._load(self.sources[piece.source], piece.rows) for piece in batch]
                    ids = [number for piece in batch for number in piece.ids]
                    results = purify(torch.cat(loaded), ids, draw).detach().cpu()
                    self._store(draw, batch, results)
                    purified += size
                for piece in batch:
                    if piece.rows[-1] == self.sources[piece.source].count - 1:  # its last one
                        self._assemble(draw, piece.source)
                done(size)
        return purified

    def _store(self, draw: int, batch: Batch, results: Tensor) -> None:
        for piece, images in zip(batch, results.split([len(piece.rows) for piece in batch]), strict=True):
            source, place = self.sources[piece.source], self._place(draw, piece)
            if place.exists() or self.target(draw, piece.source).exists():
                continue
            encoded = source.encode(images)
            if isinstance(source, ImageFile):
                source.write(place, encoded)
            else:
                with replacing(place) as file:
                    np.save(file, encoded)

    def _place(self, draw: int, piece: Piece) -> Path:
        """The file of one piece; for a picture that is its target."""
        if isinstance(self.sources[piece.source], ImageFile):
            return self.target(draw, piece.source)
        return self.out / PIECES / f"{draw}-{piece.source}-{piece.rows[0]}.npy"

    def _missing(self, draw: int, batch: Batch) -> bool:
        return any(
            not self.target(draw, piece.source).exists() and not self._place(draw, piece).exists()
            for piece in batch
        )

    def _assemble(self, draw: int, index: int) -> None:
        """Write an array whose pieces are all there."""
        source, target = self.sources[index], self.target(draw, index)
        if isinstance(source, ImageFile):
            return
        places = [
            self._place(draw, piece) for batch in self.batches for piece in batch if piece.source == index
        ]
        if not target.exists():
            if not all(place.exists() for place in places):
                return
            source.write(target, np.concatenate([np.load(place, allow_pickle=False) for place in places]))
        with disk(self.out):
            for place in places:
                place.unlink(missing_ok=True)

    def _keep_inputs(self) -> None:
        """No input may become an output: it would be overwritten, or purified again on continuing."""
        out = self.out.resolve()
        for source in self.sources:
            path = source.path.resolve()
            if out in path.parents:
                raise ValueError(
                    mistake("--out", "a folder without inputs in it", f"{self.out}, with {source.path}")
                )

    def _sweep(self, name: str) -> None:
        """Delete what killed processes left of files called ``name``."""
        for unfinished in self.out.rglob(f".{name}.*{PARTIAL}"):
            unfinished.unlink()

    def _claim(self, force: bool) -> bool:
        file = self.out / RUN_FILE
        there = [
            target
            for draw in range(self.draws)
            for index in range(len(self.sources))
            if index not in self.broken and (target := self.target(draw, index)).exists()
        ]
        if file.exists() and not force:
            before, now = _read(file), json.loads(json.dumps(self.settings))
            if CONVENTIONS not in before.get("networks", {}):  # folders of version 0.1.0
                now.get("networks", {}).pop(CONVENTIONS, None)
            different = _differences(before, now)
            if different:
                remedy = "Use another folder, or --force to start over"
                raise ResumeError(f"{self.out} belongs to another run: {different}. {remedy}")
            self._sweep("*")
            return True
        if there and not force:
            raise ResumeError(
                f"{self.out}: {len(there)} of the files to be written are there already, for example "
                f"{there[0]}. --force overwrites them"
            )
        self._sweep("*" if force else RUN_FILE)
        file.unlink(missing_ok=True)  # first, so that a crash here leaves no run that seems complete
        for stale in (*there, *(self.out / PIECES).glob("*.npy")):
            stale.unlink()
        replace_file(file, (json.dumps(self.settings, indent=1) + "\n").encode())
        return False


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(f"{file}: damaged: {error}. --force starts over") from error
    if not isinstance(content, dict):
        raise ResumeError(f"{file}: damaged: expected an object. --force starts over")
    return content


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs, in words; empty if nothing."""
    words = []
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed = sorted(key for key in set(old) | set(new) if old.get(key) != new.get(key))
            words.append(f"{len(changed)} {name} differ ({', '.join(changed[:3])})")
        else:
            words.append(f"{name} was {old!r}, is {new!r}")
    return "; ".join(words)
