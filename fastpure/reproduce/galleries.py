"""Figures of images: the same attacked images purified by several methods, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch

from ..report.data import Entry
from ..report.pictures import (
    Column,
    Gallery,
    Row,
    bare_classes,
    choose,
    decided,
    given_row,
    noise_row,
    purified_row,
)
from ..report.sheet import sheet
from .experiment import Drawing
from .made import Made
from .parts import Row as Line

KINDS = {
    "rescued": "{first} errs, {last} does not",
    "lost": "{first} is right, {last} errs",
    "both right": "{first} and {last} are right",
    "both err": "{first} and {last} err",
}
"""What can have happened to an image; a method counts as right if most of its draws are, see `majority`."""


@final
@dataclass(frozen=True)
class SideBySide(Drawing):
    """Originals, attacked images, what the attack added, and what each method makes of them.

    Attributes:
        lines: rows on the same attacked images, the first being the one whose attack found them (or that has them
            from elsewhere); methods are shown in this order.
        only: the kinds of images shown, of `KINDS`.
        most: images.
    """

    name: str
    lines: tuple[Line, ...]
    only: tuple[str, ...] = tuple(KINDS)
    most: int = 8

    def draw(self, made: Made) -> Mapping[str, bytes]:
        """See `Drawing.draw`."""
        shown = [(line, entry) for line in self.lines if (entry := made.entry(line)) is not None]
        if len(shown) < 2:
            made.note(f"{self.name}: nothing to draw, fewer than two of its rows were run")
            return {}
        first, last = shown[0][1], shown[-1][1]
        kinds = [
            _kind(bool(a), bool(b))
            for a, b in zip(decided(first, "adversarial"), decided(last, "adversarial"), strict=True)
        ]
        counts = {kind: kinds.count(kind) for kind in KINDS}
        names = {"first": shown[0][0].defence.label, "last": shown[-1][0].defence.label}
        told = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        pair = " and ".join(names.values())
        made.note(f"{self.name}: of {len(kinds)} attacked images, {told} ({pair}, most of the draws).")
        known = {kind: KINDS[kind].format(**names) for kind in self.only}
        picked = choose(kinds, self.most, known)
        if not picked:
            made.note(f"{self.name}: nothing to draw, there is no image that is {' or '.join(self.only)}")
            return {}
        gallery = Gallery(
            replace(first, name=f"{made.title}{made.suffix}"),
            _columns(first, picked, kinds),
            self._rows(made, shown, picked),
            (),
            "",
            known,
        )
        return {f"{self.name}.png": sheet(gallery)}

    def _rows(self, made: Made, shown: list[tuple[Line, Entry]], picked: list[int]) -> tuple[Row, ...]:
        first = shown[0][1]
        positions = first.run.positions[picked].tolist()
        target = made.target(shown[0][0].defence)
        assert target is not None
        every = torch.from_numpy(first.run.sample_ids)
        rows = []
        for which in ("clean", "adversarial"):
            bare = bare_classes(target, first.run.images(which), every)[picked] if target.purifies else None
            rows.append(given_row(first, which, first.run.images(which, positions), picked, bare))
        rows.insert(2, noise_row(first, positions))
        x = first.run.images("adversarial", positions)
        for line, entry in shown:
            own = made.target(line.defence)
            assert own is not None
            made.say(f"images of {line.defence.label}")
            if own.purifies:
                _, said, tiles = purified_row(entry, own, "adversarial", x, picked)
                rows.append((line.defence.label, said, tiles))
        return tuple(rows)


def _kind(first: bool, last: bool) -> str:
    if first == last:
        return "both right" if first else "both err"
    return "rescued" if last else "lost"


def _columns(entry: Entry, picked: list[int], kinds: list[str]) -> tuple[Column, ...]:
    run, names = entry.run, entry.class_names
    return tuple(
        Column(int(run.positions[i]), int(run.sample_ids[i]), names[run.labels[i]], kinds[i]) for i in picked
    )
