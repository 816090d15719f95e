"""Charts and galleries as files: a gallery's pictures, enlarged pixel by pixel, with verdicts, are one drawing."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from ..files import Unfinished
from .charts import Chart, picture, warned
from .data import Entry
from .pictures import Gallery, Tile, pixels
from .plotting import PALETTE, look, printable, saved, width, wrapped

SIDE = 112
"""About how high and wide a picture becomes; enlarged by whole numbers, never made smaller."""

HEAD, TEXT, SMALL = 21, 17, 14
MARGIN, GAP = 22, 14
LEAST = 560
"""Width of the narrowest sheet, margins apart: one image must not break its title to pieces."""

NAMES, WORDS = 170, 150
"""Room in pixels for the names of rows, and for words above and below a picture wider than it is."""


@final
@dataclass(frozen=True)
class Words:
    """A piece of text with its look; ``lines`` fit the room they were made for."""

    lines: tuple[str, ...]
    size: int
    colour: str = "ink"
    bold: bool = False

    @property
    def height(self) -> int:
        """In pixels, leading included."""
        return round(1.32 * self.size) * len(self.lines)

    @property
    def width(self) -> int:
        """Of the widest line, in pixels."""
        return round(max(width(line, self.size, self.bold) for line in self.lines) + 0.5)


def sheet(gallery: Gallery, kind: str = "png") -> bytes:
    """The gallery as a "png" or "pdf" on white; the same gallery gives the same bytes."""
    rows = [_Row(name, said, tiles) for name, said, tiles in gallery.rows]
    heads = [
        [
            _words(column.kind, WORDS, TEXT, bold=True),
            _words(f"no. {column.position}: {column.label}", WORDS, SMALL),
        ]
        for column in gallery.columns
    ]
    left = max(words.width for row in rows for words in row.name)
    cells = [
        max(words.width for part in (head, *(row.below[i] for row in rows)) for words in part)
        for i, head in enumerate(heads)
    ]
    wide = max(row.size[0] for row in rows)
    columns = [max(cell, wide) for cell in cells]
    full = max(LEAST, left + sum(GAP + column for column in columns))
    above, below = _title(gallery, full), _notes(gallery, full)
    head_height = max(_total(head) for head in heads)
    heights = [_total(above), head_height, *(row.height for row in rows), _total(below)]
    with look():
        canvas = _Canvas(full + 2 * MARGIN, sum(heights) + GAP * (len(heights) - 1) + 2 * MARGIN)
        y = canvas.column(above, MARGIN, MARGIN) + GAP
        lead = _words("image", NAMES, TEXT, bold=True), _words("true class", NAMES, SMALL, "soft")
        canvas.column(lead, MARGIN, y)
        for head, x, column in zip(heads, _places(left, columns), columns, strict=True):
            canvas.column(head, x, y, column)
        y += head_height + GAP
        for row in rows:
            canvas.column(row.name, MARGIN, y)
            for tile, words, x, column in zip(
                row.tiles, row.below, _places(left, columns), columns, strict=True
            ):
                canvas.image(tile, row.factor, x + (column - row.size[0]) // 2, y)
                canvas.column(words, x, y + row.size[1] + 3, column)
            y += row.height + GAP
        canvas.column(below, MARGIN, y)
        return saved(canvas.figure, kind, canvas.dpi)


class _Row:
    """One row of a gallery with its texts broken into lines."""

    def __init__(self, name: str, said: str, tiles: tuple[Tile, ...]) -> None:
        self.tiles = tiles
        self.name = [_words(name, NAMES, TEXT, bold=True), _words(said, NAMES, SMALL, "soft")]
        self.below = [
            [
                *([_words(tile.mark, WORDS, TEXT, "good" if tile.right else "bad")] if tile.mark else []),
                *([_words(tile.quality, WORDS, SMALL, "soft")] if tile.quality else []),
            ]
            for tile in tiles
        ]
        self.factor = enlarged(tiles[0].image.shape[1:])
        height, width_ = tiles[0].image.shape[1:]
        self.size = (self.factor * width_, self.factor * height)
        self.height = max(self.size[1] + 3 + max(map(_total, self.below)), _total(self.name))


class _Canvas:
    """White paper, one axis unit a pixel, and what can be put on it; y runs down."""

    dpi = 100

    def __init__(self, width: int, height: int) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure((width / self.dpi, height / self.dpi), facecolor=PALETTE["paper"])
        self._axes: Any = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.axis("off")
        self._axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)

    def column(self, texts: Sequence[Words], x: int, y: int, centred: int = 0) -> int:
        """Write texts below each other, in the middle of ``centred`` pixels if given; returns where they end."""
        for words in texts:
            for line in words.lines:
                style = {"fontsize": 72 * words.size / self.dpi, "color": PALETTE[words.colour]}
                weight = "bold" if words.bold else "normal"
                place, ha = (x + centred / 2, "center") if centred else (x, "left")
                base = y + round(0.93 * words.size)
                self._axes.text(place, base, line.rstrip(), ha=ha, va="baseline", fontweight=weight, **style)
                y += round(1.32 * words.size)
        return y

    def image(self, tile: Tile, factor: int, x: int, y: int) -> None:
        """Put a picture with a thin frame around it."""
        from matplotlib.patches import Rectangle

        shown = pixels(tile.image)
        shown = shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, 2)
        high, wide = factor * shown.shape[0], factor * shown.shape[1]
        frame: dict[str, Any] = {"facecolor": PALETTE["rule"], "linewidth": 0, "antialiased": False}
        self._axes.add_patch(Rectangle((x - 1, y - 1), wide + 2, high + 2, **frame))
        place = (x, x + wide, y + high, y)
        self._axes.imshow(shown, extent=place, interpolation="nearest", aspect="auto", zorder=2)


def enlarged(shape: tuple[int, ...]) -> int:
    """By which whole number images [.., H, W] are enlarged."""
    return max(1, round(SIDE / max(shape)))


def _title(gallery: Gallery, room: int) -> list[Words]:
    entry = gallery.entry
    defense = ", ".join(part for part in (entry.defense_text, entry.defense_settings) if part)
    attack = ", ".join(part for part in (entry.attack_text, entry.attack_settings) if part)
    data = entry.identity["data"]
    told = f"{defense}; attack: {attack}; {data['name']}/{data['split']}, protocol {entry.run.protocol}"
    told += f" ({entry.part})" if entry.part else ""
    return [_words(entry.name, room, HEAD, bold=True), _words(told, room, SMALL, "soft")]


def _notes(gallery: Gallery, room: int) -> list[Words]:
    lines = [gallery.rule]
    lines += [f"{kind}: {meaning}." for kind, meaning in gallery.kinds.items()]
    told = ("both right", "flip caught", "flip caused", "both err")
    for which, shares in gallery.flips:
        parts = ", ".join(f"{name} {100 * share:.1f}" for name, share in zip(told, shares, strict=True))
        lines.append(f"Label flips on {which} images, % of all (image, draw) pairs: {parts}.")
    lines += filter(None, (gallery.remark, warned([gallery.entry])))
    return [_words(line, room, SMALL, "soft") for line in lines]


def _words(text: str, room: int, size: int, colour: str = "ink", bold: bool = False) -> Words:
    return Words(tuple(wrapped(printable(text), room, size, bold)), size, colour, bold)


def _places(left: int, columns: list[int]) -> list[int]:
    return [MARGIN + left + sum(columns[:i]) + GAP * (i + 1) for i in range(len(columns))]


def _total(texts: Sequence[Words]) -> int:
    return sum(words.height for words in texts)


LONGEST = 100
"""Characters of a name without its ending; longer ones are cut."""


def file_names(
    charts: Sequence[str], galleries: Sequence[Entry], formats: Sequence[str] = ("svg",)
) -> list[str]:
    """Names of the files of charts (by their names) and of galleries (by their runs), in this order, no two alike.

    Each chart has a file per format; each gallery one in PNG, and one in PDF if that is among the formats.
    Galleries of runs with the same name are told apart by the first digits of their results' checksums, whatever
    the order of the runs; charts by numbers.
    """
    plain = [slug(f"images-{entry.name}") for entry in galleries]
    often = Counter(plain)
    pictures = [
        name if often[name] == 1 else f"{name}-{entry.summary.digest[:8]}"
        for name, entry in zip(plain, galleries, strict=True)
    ]
    wanted = [(slug(name), formats) for name in charts]
    wanted += [(name, gallery_formats(formats)) for name in pictures]
    stems: list[str] = []
    found: list[str] = []
    for stem, kinds in wanted:
        own, number = stem, 1
        while own in stems:
            number += 1
            own = f"{stem}-{number}"
        stems.append(own)
        found += [f"{own}.{kind}" for kind in kinds]
    return found


def gallery_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Those a gallery has, which is made of pixels: PNG, and PDF where it is wanted."""
    return ("png", "pdf") if "pdf" in formats else ("png",)


def slug(text: str) -> str:
    """Small letters without accents, digits, points within numbers, and hyphens for all else."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    kept = re.sub(r"(?<!\d)\.|\.(?!\d)|[^a-z0-9.]+", "-", plain)
    return re.sub(r"-+", "-", kept)[:LONGEST].strip("-.")


def write_pictures(
    folder: Path,
    names: Sequence[str],
    charts: Sequence[Chart],
    galleries: Sequence[Gallery],
    batch: Unfinished,
    formats: Sequence[str] = ("svg",),
) -> list[Path]:
    """Draw and write all of them under their `file_names`, each whole or not at all; returns their paths."""
    contents = [picture([chart], kind) for chart in charts for kind in formats]
    contents += [sheet(gallery, kind) for gallery in galleries for kind in gallery_formats(formats)]
    return [batch.write(folder / name, content) for name, content in zip(names, contents, strict=True)]
