"""Charts and galleries as files in a folder: their names, which are known before anything is drawn, and the writing."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..files import Unfinished
from .chart import Chart
from .data import Entry
from .pictures import Gallery
from .sheet import sheet
from .standalone import standalone

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
