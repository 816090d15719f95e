"""Charts: lines with intervals, drawn by matplotlib, inside a page in its theme and as files of their own."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final
from xml.etree import ElementTree

from ..errors import mistake, one_of
from .data import Entry, doubts, finding, in_words
from .plotting import PALETTE, SAME, element, look, printable, saved, tidied, width, wrapped

WIDTH, HEIGHT = 440, 286
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 14, 46
"""Size of a chart and of what is around its axes, in points."""

SHIFT = 2.5
N_STYLES = 8
"""Colours there are; beyond them the dashes change."""

DASHES = ((), (7, 3), (2, 3), (9, 3, 2, 3))

FONTS = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', Arial, sans-serif"


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

    @property
    def dashes(self) -> tuple[int, ...]:
        """Lengths drawn and left out in turn; empty for a line without gaps."""
        own = DASHES[self.style // N_STYLES % len(DASHES)]
        return (4, 3) if self.hollow and not own else own


@final
@dataclass(frozen=True, eq=False)
class Chart:
    """Lines with title, axes and caption. What is shown, not how: `svg` and `picture` draw it.

    Attributes:
        name: short and of letters, digits and hyphens where possible; names the chart's file.
        caption: what the lines are, whole sentences.
        entries: the runs shown; none where nothing was evaluated.
        percent: y runs to 100 %, from 0 or from `floor_percent`.
        backwards: x runs from right to left.
        marks: every point has a mark.
        warnings: what speaks against the numbers, see `warned`.
        logarithmic: equal room for equal ratios of x, which are positive.
        counts: x counts something, so that only whole numbers are told at its axis.
        x_range: of the axis where it is not that of the lines; charts with the same one can be laid side by side.
    """

    name: str
    title: str
    caption: str
    entries: tuple[Entry, ...]
    series: tuple[Series, ...]
    x_label: str
    y_label: str
    percent: bool = False
    backwards: bool = False
    marks: bool = True
    warnings: str = ""
    logarithmic: bool = False
    counts: bool = False
    x_range: tuple[float, float] | None = None

    @property
    def runs(self) -> str:
        """The numbers of the runs on their page."""
        numbers = [int(entry.key) for entry in self.entries]
        return f"{'Run' if len(numbers) == 1 else 'Runs'} {listed(numbers)}."

    @property
    def conditions(self) -> str:
        """What the runs share of defence and attack, their images and protocols; sentences for who has no page."""
        shown = self.entries
        if not shown:
            return self.warnings
        said = [
            _shared("Defence", [(entry.defense_text, entry.defense_settings) for entry in shown]),
            _shared("Attack", [(entry.attack_text, entry.attack_settings) for entry in shown]),
        ]
        data = [entry.identity["data"] for entry in shown]
        images = _each(f"{len(entry.run.positions)}" for entry in shown)
        where = _each(f"{one['name']}/{one['split']}" for one in data)
        protocols = _each(str(entry.run.protocol) for entry in shown)
        named = f"protocol{'' if len(protocols) == 1 else 's'} {' and '.join(protocols)}"
        plural = "s" if len(shown) > 1 or images != ["1"] else ""
        on = f"Run{'s' if len(shown) > 1 else ''} on {' or '.join(images)} image{plural} of {' and '.join(where)}"
        return " ".join(filter(None, [*said, f"{on}, {named}.", self.warnings]))

    @property
    def description(self) -> str:
        """The chart in words: where each line begins and ends."""
        parts = []
        for one in self.series:
            known = [(x, y) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
            if known:
                ends = [f"{100 * y:.1f} %" if self.percent else f"{y:.3g}" for _, y in (known[0], known[-1])]
                parts.append(
                    f"{one.name} from {ends[0]} at {known[0][0]:.4g} to {ends[1]} at {known[-1][0]:.4g}"
                )
        return f"{self.title}. " + "; ".join(parts)

    @property
    def names(self) -> list[str]:
        """What a legend without a page calls the lines: without the numbers of runs, unless names repeat."""
        plain = [one.name for one in self.series]
        repeated = len(set(plain)) < len(plain)
        return [printable(one.label if repeated else one.name) for one in self.series]


def warned(entries: Sequence[Entry]) -> str:
    """A sentence with the warnings of these runs and of what they show together; "" where there are none.

    Warnings go with numbers wherever these go.
    """
    names = Counter(finding(name) for entry in entries for name in {w.name for w in entry.summary.warnings})
    of = f" of {len(entries)} runs" if len(entries) > 1 else ""
    found = [f"{name} ({count}{of})" if of else name for name, count in sorted(names.items())]
    for name in dict.fromkeys(doubt.name for doubt in doubts(entries) if doubt.alarm):
        found.append(in_words(name))
    return f"Warnings, see the report: {', '.join(found)}." if found else ""


def cut(series: Sequence[Series]) -> str:
    """A sentence where the axis in per cent begins above 0."""
    return " The axis does not begin at 0." if floor_percent(series) > 0 else ""


def listed(numbers: Sequence[int]) -> str:
    """ "1, 3 and 4", "2 to 5 and 7"; ascending numbers."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    words = []
    for span in spans:
        words += [f"{span[0]} to {span[-1]}"] if len(span) > 2 else [str(number) for number in span]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def floor_percent(series: Sequence[Series]) -> float:
    """Where an axis in per cent begins: at 0, or at a multiple of 10 % where all is above one half."""
    least = min((y for one in series for y in (*one.y, *one.low) if math.isfinite(y)), default=0.0)
    return 0.0 if least < 0.5 else math.floor(10 * least - 0.25) / 10


def svg(chart: Chart) -> str:
    """The chart as an SVG element for a page: no ground, ink in the page's colour, lines in its variables.

    Title, legend and caption are the page's own. NaN interrupts a line, and an interval from NaN is not drawn.

    Raises:
        ValueError: an x that is not positive, on a logarithmic axis.
    """
    with _paper(WIDTH, HEIGHT) as paper:
        paper.figure.patch.set_visible(False)
        _draw(paper, chart, 0, 0, "")
        root = tidied(paper.figure, {f"line-{i}": one.label for i, one in enumerate(chart.series)})
    told = {"class": "chart", "role": "img", "aria-label": printable(chart.description)}
    root.attrib = told | {name: root.attrib[name] for name in ("viewBox", "stroke-linejoin")}
    variables = {PALETTE[name]: f"var(--{name})" for name in PALETTE} | {PALETTE["ink"]: "currentColor"}
    for one in root.iter():
        one.tag = one.tag.rsplit("}", 1)[-1]
        if "style" in one.attrib:
            one.set("style", re.sub("#[0-9a-f]{6}", lambda found: variables[found[0]], one.attrib["style"]))
    return ElementTree.tostring(root, encoding="unicode")


MARGIN = 14
TITLE, LEGEND, CAPTION = 15.0, 12.0, 11.0
KEY = 32
"""Room for the piece of line before a name in the legend."""


def picture(charts: Sequence[Chart], kind: str = "svg", columns: int = 2) -> bytes:
    """Charts as one file on white, in rows of ``columns``, each with its title, legend and caption.

    The same charts give the same bytes. Lines have the colours they have on the page, unless these would need dashes
    that fewer lines do without. An SVG needs no style, script or font file.

    Args:
        kind: "svg", "png" or "pdf".

    Raises:
        ValueError: another kind, no chart, or an x that is not positive on a logarithmic axis.
    """
    one_of("kind", kind, SAME)
    if not charts:
        raise ValueError(mistake("charts", "one or more", "none"))
    shown = [replace(chart, series=_recoloured(chart.series)) for chart in charts]
    rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    heights = [max(_block(None, chart, 0, 0, "") for chart in row) for row in rows]
    step = WIDTH + 2 * MARGIN
    with _paper(step * min(columns, len(shown)), sum(heights)) as paper:
        names: dict[str, str] = {}
        number, top = 0, 0.0
        for row, height in zip(rows, heights, strict=True):
            for column, chart in enumerate(row):
                prefix = f"{number}-"
                _block(paper, chart, column * step, top, prefix)
                names |= {f"{prefix}line-{i}": name for i, name in enumerate(chart.names)}
                number += 1
            top += height
        if kind != "svg":
            return saved(paper.figure, kind)
        root = tidied(paper.figure, names)
    told = "; ".join(printable(chart.title) for chart in shown)
    words = " ".join(f"{chart.description}. {chart.caption} {chart.conditions}" for chart in shown)
    for place, (tag, text) in enumerate((("title", told), ("desc", printable(words)))):
        root.insert(place, element(tag, text))
    root.attrib |= {"role": "img", "font-family": FONTS}
    return (ElementTree.tostring(root, encoding="unicode") + "\n").encode()


class _Paper:
    """A drawing of ``wide`` by ``high`` points; places are counted from its upper left corner."""

    def __init__(self, wide: float, high: float) -> None:
        from matplotlib.figure import Figure

        self.figure, self.wide, self.high = Figure((wide / 72, high / 72)), wide, high

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place in shares of the drawing."""
        return x / self.wide, 1 - y / self.high

    def axes(self, x: float, y: float, wide: float, high: float) -> Any:
        """Axes without frame and ground."""
        left, bottom = self.at(x, y + high)
        axes = self.figure.add_axes((left, bottom, wide / self.wide, high / self.high))
        axes.patch.set_visible(False)
        axes.spines[["left", "top", "right"]].set_visible(False)
        return axes

    def text(self, x: float, y: float, words: str, size: float, colour: str, bold: bool = False) -> None:
        """A line of text on this base line."""
        weight = "bold" if bold else "normal"
        style: dict[str, Any] = {"fontsize": size, "color": PALETTE[colour], "fontweight": weight}
        self.figure.text(*self.at(x, y), words, va="baseline", **style)

    def key(self, x: float, y: float, one: Series, marks: bool) -> None:
        """A short piece of its line."""
        from matplotlib.lines import Line2D

        (left, height), (middle, _), (right, _) = (self.at(x + dx, y) for dx in (1, 13, 25))
        ways: dict[str, Any] = {"transform": self.figure.transFigure, "figure": self.figure}
        self.figure.add_artist(Line2D((left, right), (height, height), **ways, **_stroke(one)))
        if marks:
            self.figure.add_artist(Line2D((middle,), (height,), **ways, **_mark(one, 6.0)))


@contextmanager
def _paper(wide: float, high: float) -> Iterator[_Paper]:
    with look():
        paper = _Paper(wide, high)
        paper.figure.patch.set_facecolor(PALETTE["paper"])
        yield paper


def _block(paper: _Paper | None, chart: Chart, x: float, top: float, prefix: str) -> float:
    """A chart with all that belongs to it; returns its height. Without ``paper`` it is only measured."""
    left = x + MARGIN
    y = top + MARGIN + _lines(paper, chart.title, left, top + MARGIN, WIDTH, TITLE, "ink", bold=True) + 4
    if paper is not None:
        _draw(paper, chart, left, y, prefix)
    y += HEIGHT + 8
    y += _legend(paper, chart, left, y) + 4
    y += _lines(paper, f"{chart.caption} {chart.conditions}", left, y, WIDTH, CAPTION, "soft")
    return round(y + MARGIN - top)


def _legend(paper: _Paper | None, chart: Chart, left: float, top: float) -> float:
    """Draw it in as many columns as fit; returns its height."""
    texts = chart.names
    widest = max((width(text, LEGEND) for text in texts), default=0.0) + KEY
    columns = max(1, min(len(texts), int((WIDTH + 16) // (widest + 16))))
    y, tallest = top, 0.0
    for i, (one, text) in enumerate(zip(chart.series, texts, strict=True)):
        if i and i % columns == 0:
            y, tallest = y + tallest, 0.0
        x = left + (i % columns) * (widest + 16)
        if paper is not None:
            paper.key(x, y + 8, one, chart.marks)
        tallest = max(tallest, _lines(paper, text, x + KEY, y, WIDTH - KEY, LEGEND, "ink") + 2)
    return y + tallest - top


def _lines(
    paper: _Paper | None,
    text: str,
    x: float,
    top: float,
    room: float,
    size: float,
    colour: str,
    bold: bool = False,
) -> float:
    """Write ``text`` wrapped; returns its height."""
    lines, step = wrapped(printable(text), room, size, bold), 1.35 * size
    for i, line in enumerate(lines if paper is not None else ()):
        assert paper is not None
        paper.text(x, top + size + i * step, line, size, colour, bold)
    return step * len(lines)


def _recoloured(series: Sequence[Series]) -> tuple[Series, ...]:
    styles = sorted({one.style for one in series})
    if not styles or styles[-1] < N_STYLES:
        return tuple(series)
    return tuple(replace(one, style=styles.index(one.style)) for one in series)


def _draw(paper: _Paper, chart: Chart, x: float, y: float, prefix: str) -> None:
    """Axes and lines within `WIDTH` and `HEIGHT` at a place."""
    axes = paper.axes(x + LEFT, y + TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    span = _ranges(chart, axes)
    _ticks(chart, axes)
    # Points at the same place stand side by side, so that their intervals can be told apart.
    middle, step = (len(chart.series) - 1) / 2, _step(chart.series, span, chart.logarithmic)
    for i, one in enumerate(chart.series):
        shift = step * (i - middle) if one.low else 0.0
        _line(axes, one, chart.marks, shift, f"{prefix}line-{i}")


def _ranges(chart: Chart, axes: Any) -> tuple[float, float]:
    """Give the axes their ranges; returns that of x, of its decimal logarithms where it is logarithmic."""
    xs = [x for one in chart.series for x in one.x if math.isfinite(x)] or [1.0, 2.0]
    xs = xs if chart.x_range is None else list(chart.x_range)
    if chart.logarithmic:
        if min(xs) <= 0:
            raise ValueError(mistake("x", "positive on a logarithmic axis", min(xs)))
        axes.set_xscale("log")
        xs = [math.log10(x) for x in xs]
    span = _padded(min(xs), max(xs), 0.03)
    axes.set_xlim([10.0**x for x in span] if chart.logarithmic else span)
    if chart.backwards:
        axes.invert_xaxis()
    ys = [y for one in chart.series for y in (*one.y, *one.low, *one.high) if math.isfinite(y)] or [0.0, 1.0]
    axes.set_ylim((floor_percent(chart.series), 1.0) if chart.percent else _padded(min(ys), max(ys)))
    return span


def _ticks(chart: Chart, axes: Any) -> None:
    """Round numbers at the axes, whole ones where x counts, and what the axes are called."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    x, y = sorted(axes.get_xlim()), axes.get_ylim()
    round_: dict[str, Any] = {"steps": (1, 2, 5, 10)}
    across = MaxNLocator(7, **round_, integer=chart.counts, min_n_ticks=1)
    places = LogLocator(subs=(1.0, 2.0, 5.0)) if chart.logarithmic else across
    for axis, (low, high), locator, percent in (
        (axes.xaxis, x, places, False),
        (axes.yaxis, y, MaxNLocator(6, **round_), chart.percent),
    ):
        slack = 1e-9 * (high - low)
        found = [place for place in locator.tick_values(low, high) if low - slack <= place <= high + slack]
        axis.set_minor_locator(NullLocator())
        words = [
            f"{100 * place:.0f}" if percent else f"{place:.4g}".replace("-", "\u2212") for place in found
        ]
        axis.set_ticks(found, words)
    axes.tick_params(labelsize=13, labelcolor=PALETTE["soft"])
    axes.tick_params(axis="x", length=4, width=1, color=PALETTE["soft"], pad=4)
    axes.tick_params(axis="y", length=0, pad=7)
    axes.spines["bottom"].set(color=PALETTE["soft"], linewidth=1)
    axes.grid(axis="y", color=PALETTE["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    said: dict[str, Any] = {"fontsize": 13, "color": PALETTE["ink"]}
    middle = (HEIGHT - TOP - BOTTOM) / 2
    axes.annotate(printable(chart.x_label), (0.5, 0), (0, 10 - BOTTOM), **_placed, ha="center", **said)
    turned = {"rotation": 90, "va": "center", "ha": "right"}
    axes.annotate(printable(chart.y_label), (0, 0), (13 - LEFT, middle), **_placed, **turned, **said)


_placed: Mapping[str, str] = {"xycoords": "axes fraction", "textcoords": "offset points"}


def _line(axes: Any, one: Series, marks: bool, shift: float, name: str) -> None:
    from matplotlib.transforms import ScaledTranslation

    moved = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    ways: dict[str, Any] = {"transform": moved, "clip_on": False, "zorder": 3}
    axes.plot(one.x, one.y, **_stroke(one), **ways, gid=name)
    known = [i for i, low in enumerate(one.low) if math.isfinite(low) and math.isfinite(one.x[i])]
    if known:
        x, low, high = ([values[i] for i in known] for values in (one.x, one.low, one.high))
        colour, gap = _colour(one), [math.nan] * len(known)
        along = [x for pair in zip(x, x, gap, strict=True) for x in pair]
        up = [y for pair in zip(low, high, gap, strict=True) for y in pair]
        axes.plot(along, up, color=colour, linewidth=1.2, alpha=0.55, **ways, gid=f"{name}-intervals")
    if marks:
        axes.plot(one.x, one.y, **_mark(one, 6.4), **ways, gid=f"{name}-marks")


def _colour(one: Series) -> str:
    return PALETTE[f"s{one.style % N_STYLES}"]


def _stroke(one: Series) -> dict[str, Any]:
    dashes = (0, one.dashes) if one.dashes else "-"
    return {"color": _colour(one), "linewidth": 1.3 if one.hollow else 2.0, "linestyle": dashes}


def _mark(one: Series, size: float) -> dict[str, Any]:
    face = PALETTE["paper"] if one.hollow else _colour(one)
    look = {"markerfacecolor": face, "markeredgecolor": _colour(one), "markeredgewidth": 1.3}
    return {"linestyle": "none", "marker": "o", "markersize": size, **look}


def _step(series: Sequence[Series], span: tuple[float, float], logarithmic: bool) -> float:
    """How far lines stand apart: never so far that a point is nearer to its neighbours' place than to its own."""
    scale = (WIDTH - LEFT - RIGHT) / (span[1] - span[0])
    known = {x for one in series for x in one.x if math.isfinite(x)}
    places = sorted(scale * (math.log10(x) if logarithmic else x) for x in known)
    return min([SHIFT, *((b - a) / (2 * len(series)) for a, b in pairwise(places) if b - a > 0.1)])


def _padded(low: float, high: float, share: float = 0.06) -> tuple[float, float]:
    room = (high - low) * share or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _each(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _shared(what: str, told: Sequence[tuple[str, str]]) -> str:
    """A sentence with the name and those settings that all have; "" where names differ."""
    if len({name for name, _ in told}) > 1:
        return ""
    settings = [setting.split(", ") for _, setting in told]
    common = [word for word in settings[0] if word and all(word in other for other in settings)]
    return f"{what}: {', '.join([told[0][0], *common])}."
