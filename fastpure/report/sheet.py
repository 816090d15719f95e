"""Charts and galleries as files: a gallery's pictures, enlarged pixel by pixel, with verdicts, are one PNG."""

from __future__ import annotations

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..files import Unfinished
from .chart import Chart, warned
from .data import Entry
from .pictures import Gallery, Tile, picture
from .standalone import font, palette, standalone, width, wrapped
from .svg import printable

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


def sheet(gallery: Gallery) -> bytes:
    """The gallery as a PNG on white; the same gallery gives the same bytes."""
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
        max(words.width for words in (*head, *(row.verdicts[i] for row in rows)))
        for i, head in enumerate(heads)
    ]
    wide = max(row.size[0] for row in rows)
    columns = [max(cell, wide) for cell in cells]
    full = max(LEAST, left + sum(GAP + column for column in columns))
    above, below = _title(gallery, full), _notes(gallery, full)
    head_height = max(sum(words.height for words in head) for head in heads)
    heights = [_total(above), head_height, *(row.height for row in rows), _total(below)]
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
            row.tiles, row.verdicts, _places(left, columns), columns, strict=True
        ):
            canvas.image(tile, x + (column - row.size[0]) // 2, y)
            canvas.column([words], x, y + row.size[1] + 3, column)
        y += row.height + GAP
    canvas.column(below, MARGIN, y)
    return canvas.png()


class _Row:
    """One row of a gallery with its texts broken into lines."""

    def __init__(self, name: str, said: str, tiles: tuple[Tile, ...]) -> None:
        self.tiles = tiles
        self.name = [_words(name, NAMES, TEXT, bold=True), _words(said, NAMES, SMALL, "soft")]
        self.verdicts = [
            _words(tile.mark, WORDS, TEXT, "bad" if tile.right is False else "good") for tile in tiles
        ]
        factor = enlarged(tiles[0].image.shape[1:])
        self.size = (factor * tiles[0].image.shape[2], factor * tiles[0].image.shape[1])
        shown = max(words.height for words in self.verdicts) if any(tile.mark for tile in tiles) else 0
        self.height = max(self.size[1] + 3 + shown, _total(self.name))


class _Canvas:
    """White paper, and what can be put on it."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self._image = Image.new("RGB", (width, height), palette()["paper"])
        self._draw = ImageDraw.Draw(self._image)

    def column(self, texts: Any, x: int, y: int, centred: int = 0) -> int:
        """Write texts below each other, in the middle of ``centred`` pixels if given; returns where they end."""
        for words in texts:
            for line in words.lines:
                own = width(line.rstrip(), words.size, words.bold)
                place = (x + (centred - own) / 2 if centred else x, y)
                ink = palette()[words.colour]
                self._draw.text(place, line.rstrip(), fill=ink, font=font(words.size, words.bold))
                y += round(1.32 * words.size)
        return y

    def image(self, tile: Tile, x: int, y: int) -> None:
        """Put a picture with a thin frame around it."""
        from PIL import Image

        small = picture(tile.image).convert("RGB")
        factor = enlarged(tile.image.shape[1:])
        large = small.resize((factor * small.width, factor * small.height), Image.Resampling.NEAREST)
        self._draw.rectangle(
            (x - 1, y - 1, x + large.width, y + large.height), outline=palette()["rule"], width=1
        )
        self._image.paste(large, (x, y))

    def png(self) -> bytes:
        """The finished picture."""
        buffer = io.BytesIO()
        self._image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


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
    drawn = any(" · " in tile.verdict for _, _, tiles in gallery.rows for tile in tiles)
    lines = ["✓ right, ✗ wrong" + ("; k/n: right on k of n draws." if drawn else ".")]
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


def _total(texts: list[Words]) -> int:
    return sum(words.height for words in texts)


LONGEST = 100
"""Characters of a name without its ending; longer ones are cut."""


def file_names(charts: Sequence[str], galleries: Sequence[Entry]) -> list[str]:
    """Names of the files of charts (by their names) and of galleries (by their runs), in this order, no two alike.

    Galleries of runs with the same name are told apart by the first digits of their results' checksums, whatever
    the order of the runs; charts by numbers.
    """
    plain = [slug(f"images-{entry.name}") for entry in galleries]
    often = Counter(plain)
    pictures = [
        name if often[name] == 1 else f"{name}-{entry.summary.digest[:8]}"
        for name, entry in zip(plain, galleries, strict=True)
    ]
    wanted = [f"{slug(name)}.svg" for name in charts] + [f"{name}.png" for name in pictures]
    found: list[str] = []
    for name in wanted:
        stem, ending = name.rsplit(".", 1)
        number = 1
        while name in found:
            number += 1
            name = f"{stem}-{number}.{ending}"
        found.append(name)
    return found


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
) -> list[Path]:
    """Draw and write all of them under their `file_names`, each whole or not at all; returns their paths."""
    contents = [*(standalone(chart).encode() for chart in charts), *(sheet(gallery) for gallery in galleries)]
    return [batch.write(folder / name, content) for name, content in zip(names, contents, strict=True)]
