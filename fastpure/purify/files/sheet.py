"""A contact sheet: pictures before and after, beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...data.pictures import PHOTOGRAPHS, Picture
from ...files import replacing

MOST = 60
"""Pictures on a sheet."""

COLUMNS, SIDE, GAP = 3, 1.9, 0.25
"""Pairs in a row; inches of a picture's side, and between two pairs."""


def contact_sheet(pairs: Sequence[tuple[str, Path, Path]], target: Path) -> None:
    """Write the (name, before, after) ``pairs``, of which the first ``MOST`` are shown, as a picture to ``target``."""
    from matplotlib.figure import Figure

    shown = list(pairs)[:MOST]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    # No pyplot: its figures belong to a screen, and to everyone.
    size = ((2 * SIDE + GAP) * columns, (SIDE + 0.3) * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    widths = [SIDE, SIDE, GAP] * columns
    grid = figure.subplots(rows, 3 * columns, squeeze=False, width_ratios=widths)
    for axes in grid.flat:
        axes.axis("off")
        axes.set_anchor("N")
    for i, (name, before, after) in enumerate(shown):
        row, column = divmod(i, columns)
        left, right = grid[row, 3 * column : 3 * column + 2]
        for axes, path, title, colour in (
            (left, before, _short(name), "0"),
            (right, after, "purified", "0.45"),
        ):
            _show(axes, path)
            axes.set_title(title, loc="left", fontsize=7, color=colour)
    if len(pairs) > MOST:
        figure.suptitle(f"the first {MOST} of {len(pairs)} pictures", fontsize=8)
    with replacing(target) as file:
        figure.savefig(file, format=target.suffix.lstrip(".").lower() or "png", dpi=150)


def _show(axes: Any, path: Path) -> None:
    picture = Picture.open(path, PHOTOGRAPHS).rgb()
    picture.thumbnail((600, 600))
    axes.imshow(picture, interpolation="nearest" if max(picture.size) < 100 else "antialiased")


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:11]}…{name[-14:]}"
