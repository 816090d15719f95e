"""Charts and interval bars as SVG text. Colours and fonts come from the page's style, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import final

from ..errors import mistake
from ..intervals import Interval

WIDTH, HEIGHT = 440, 286
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 14, 46
SHIFT = 2.5
N_STYLES = 8
"""Colours there are; beyond them the dashes change."""


@final
@dataclass(frozen=True)
class Series:
    """A named line; ``y`` in [0, 1] where the chart is in per cent, ``low`` and ``high`` its interval or empty.

    Equal ``style`` numbers give equal colours in all charts of a page; ``hollow`` draws it thinner with open marks;
    ``key`` is the number of its run on the page, where it is that of one run.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    style: int = 0
    hollow: bool = False
    key: str = ""

    @property
    def label(self) -> str:
        """The name for a page where runs have numbers."""
        return f"{self.key}: {self.name}" if self.key else self.name


@final
@dataclass(frozen=True)
class Frame:
    """The axes: ranges of the data, what is written at them, and whether x runs backwards or y is in per cent.

    Where x is ``logarithmic``, its range is that of its decimal logarithms.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    backwards: bool = False
    percent: bool = False
    logarithmic: bool = False

    def px(self, x: float) -> float:
        """Horizontal place of ``x``."""
        share = ((math.log10(x) if self.logarithmic else x) - self.x[0]) / (self.x[1] - self.x[0])
        return LEFT + (1 - share if self.backwards else share) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        """Vertical place of ``y``."""
        return HEIGHT - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)


def line_chart(
    series: Sequence[Series],
    *,
    description: str,
    x_label: str,
    y_label: str,
    percent: bool = False,
    backwards: bool = False,
    marks: bool = True,
    logarithmic: bool = False,
) -> str:
    """An SVG element with all series; ``description`` is its text for those who do not see it.

    NaN interrupts a line, and an interval from NaN is not drawn. ``percent`` lets y run to 100 %, from 0 or from
    `floor_percent`; ``backwards`` lets x run from right to left; ``logarithmic`` gives equal room to equal ratios of x.

    Raises:
        ValueError: an x that is not positive, on a logarithmic axis.
    """
    frame = _frame(series, x_label, y_label, percent, backwards, logarithmic)
    told = escape(printable(description), quote=True)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">']
    parts += _axes(frame)
    # Points at the same place stand side by side, so that their intervals can be told apart.
    middle, step = (len(series) - 1) / 2, _step(frame, series)
    for i, one in enumerate(series):
        parts += _line(frame, one, marks, shift=step * (i - middle) if one.low else 0.0)
    parts.append("</svg>")
    return "".join(parts)


def interval_bar(interval: Interval, style: str = "robust") -> str:
    """A bar from 0 to 100 % with the interval and its estimate; the numbers stand beside it as text."""
    low, high = 100 * interval.low, 100 * interval.high
    dot = (
        ""
        if math.isnan(interval.estimate)
        else f'<circle cx="{_n(100 * interval.estimate)}" cy="5" r="2.6"/>'
    )
    grid = "".join(f'<line class="tick" x1="{x}" x2="{x}" y1="0" y2="10"/>' for x in (0, 25, 50, 75, 100))
    grid += '<line class="tick" x1="0" x2="100" y1="5" y2="5"/>'
    return (
        f'<svg class="bar {style}" viewBox="-3 0 106 10" aria-hidden="true">{grid}'
        f'<rect x="{_n(low)}" y="3.4" width="{_n(high - low)}" height="3.2" rx="1.6"/>{dot}</svg>'
    )


def printable(text: str) -> str:
    """``text`` on one line and without control characters and halves of characters, which XML cannot hold."""
    return "".join(" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in text)


def key(style: int, hollow: bool = False) -> str:
    """A short piece of a line for a legend."""
    mark = f"s{style % N_STYLES}{' hollow' if hollow else ''} dot"
    line = f'<line {_stroke(style, hollow)} x1="1" x2="25" y1="5" y2="5"/>'
    return (
        f'<svg class="key" viewBox="0 0 26 10" aria-hidden="true">{line}'
        f'<circle class="{mark}" cx="13" cy="5" r="3"/></svg>'
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within [low, high], positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**k for k in powers for m in (1, 2, 5) if low <= m * 10.0**k * 1.000001 <= high * 1.00001]


def floor_percent(series: Sequence[Series]) -> float:
    """Where an axis in per cent begins: at 0, or at a multiple of 10 % where all is above one half."""
    least = min((y for one in series for y in (*one.y, *one.low) if math.isfinite(y)), default=0.0)
    return 0.0 if least < 0.5 else math.floor(10 * least - 0.25) / 10


def _frame(
    series: Sequence[Series], x_label: str, y_label: str, percent: bool, backwards: bool, logarithmic: bool
) -> Frame:
    xs = [x for one in series for x in one.x if math.isfinite(x)] or [1.0 * logarithmic, 1.0 + logarithmic]
    if logarithmic:
        if min(xs) <= 0:
            raise ValueError(mistake("x", "positive on a logarithmic axis", min(xs)))
        xs = [math.log10(x) for x in xs]
    ys = [y for one in series for y in (*one.y, *one.low, *one.high) if math.isfinite(y)] or [0.0, 1.0]
    y = (floor_percent(series), 1.0) if percent else _padded(min(ys), max(ys))
    return Frame(_padded(min(xs), max(xs), 0.03), y, x_label, y_label, backwards, percent, logarithmic)


def _padded(low: float, high: float, share: float = 0.06) -> tuple[float, float]:
    room = (high - low) * share or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _axes(frame: Frame) -> list[str]:
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for y in ticks(*frame.y):
        place = _n(frame.py(y))
        text = f"{100 * y:.0f}" if frame.percent else f"{y:.4g}"
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{place}" y2="{place}"/>')
        parts.append(f'<text x="{left - 7}" y="{_n(frame.py(y) + 4)}" text-anchor="end">{text}</text>')
    for x in log_ticks(*(10.0**end for end in frame.x)) if frame.logarithmic else ticks(*frame.x, about=6):
        place = _n(frame.px(x))
        parts.append(f'<line class="axis" x1="{place}" x2="{place}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{place}" y="{bottom + 18}" text-anchor="middle">{x:.4g}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    x_place, y_place = f'x="{_n((left + right) / 2)}" y="{HEIGHT - 8}"', _n((TOP + bottom) / 2)
    turned = f'transform="translate(13 {y_place}) rotate(-90)"'
    for place, text in ((x_place, frame.x_label), (turned, frame.y_label)):
        parts.append(f'<text class="label" {place} text-anchor="middle">{escape(printable(text))}</text>')
    return parts


def _step(frame: Frame, series: Sequence[Series]) -> float:
    """How far lines stand apart: never so far that a point is nearer to its neighbours' place than to its own."""
    places = sorted({frame.px(x) for one in series for x in one.x if math.isfinite(x)})
    return min([SHIFT, *((b - a) / (2 * len(series)) for a, b in pairwise(places) if b - a > 0.1)])


def _line(frame: Frame, one: Series, marks: bool, shift: float) -> list[str]:
    pieces: list[list[str]] = [[]]
    parts = []
    style = f"s{one.style % N_STYLES}{' hollow' if one.hollow else ''}"
    for i, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
        if not (math.isfinite(x) and math.isfinite(y)):
            pieces.append([])
            continue
        px, py = _n(frame.px(x) + shift), _n(frame.py(y))
        pieces[-1].append(f"{px},{py}")
        if one.low and math.isfinite(one.low[i]):
            top, bottom = _n(frame.py(one.high[i])), _n(frame.py(one.low[i]))
            parts.append(f'<line class="{style} whisker" x1="{px}" x2="{px}" y1="{top}" y2="{bottom}"/>')
        if marks:
            parts.append(f'<circle class="{style} dot" cx="{px}" cy="{py}" r="3.2"/>')
    lines = [
        f'<polyline {_stroke(one.style, one.hollow)} points="{" ".join(piece)}"/>'
        for piece in pieces
        if len(piece) > 1
    ]
    return [f"<g><title>{escape(printable(one.label))}</title>", *lines, *parts, "</g>"]


def _stroke(style: int, hollow: bool) -> str:
    dash = ("", "7 3", "2 3", "9 3 2 3")[style // N_STYLES % 4]
    own = f' stroke-dasharray="{"4 3" if hollow and not dash else dash}"' if dash or hollow else ""
    return f'class="s{style % N_STYLES}{" hollow" if hollow else ""} line"{own}'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
