"""A chart as a file of its own: SVG with title, legend and caption inside, that needs no style, script or font file.

It is the page's chart, with what the page's rules say of each element written at the element: shown by an ``<img>``
a picture gets nothing from the page around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from .chart import Chart
from .svg import HEIGHT, N_STYLES, WIDTH, Series, key, printable

STYLE = "page.css"

WHITE = {"paper": "#ffffff"}
"""Colours in which pictures differ from the page."""

KEPT = (
    "fill",
    "stroke",
    "stroke-width",
    "stroke-linejoin",
    "stroke-linecap",
    "opacity",
    "font-size",
    "font-family",
)
"""Properties that SVG takes as attributes; what is for page layout only is left out."""

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_BLOCK = re.compile(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_SELECTOR = re.compile(r"(?:\.chart )?([a-z]*)((?:\.[\w-]+)*)")
_TOKEN = re.compile(r"[^\s-]*-?\s*")

Rule = tuple[str, frozenset[str], dict[str, str]]


@cache
def palette() -> dict[str, str]:
    """Colours of the light page by name, "ink" for example, on white."""
    for selector, declared in _rules_of(style_sheet()):
        if selector == ":root":
            return {name[2:]: value for name, value in declared.items() if name.startswith("--")} | WHITE
    raise AssertionError(f"{STYLE} begins with the colours")


@cache
def style_sheet() -> str:
    """The page's style sheet."""
    return Path(__file__).with_name(STYLE).read_text()


@cache
def rules() -> tuple[Rule, ...]:
    """(element or "", classes, properties) of every rule that can meet an element of a chart, in order."""
    found = []
    for selectors, declared in _rules_of(style_sheet()):
        for selector in selectors.split(","):
            matched = _SELECTOR.fullmatch(selector.strip())
            if matched and any(matched.groups()):
                found.append((matched[1], frozenset(matched[2].split(".")[1:]), declared))
    return tuple(found)


def attributes(tag: str, classes: Sequence[str]) -> dict[str, str]:
    """What the page's rules say of an element of a chart, as SVG attributes."""
    declared: dict[str, str] = {}
    for element, wanted, properties in rules():
        if element in ("", tag) and wanted <= set(classes):
            declared |= properties
    colours = palette()

    def resolve(value: str) -> str:
        while named := re.fullmatch(r"var\(--([\w-]+)\)", value):
            value = declared.get(f"--{named[1]}") or colours[named[1]]
        return value

    return {name: resolve(value) for name, value in declared.items() if name in KEPT}


@cache
def font(size: float, bold: bool = False) -> Any:
    """DejaVu Sans, which comes with matplotlib, as a `PIL.ImageFont.FreeTypeFont`; ``size`` in pixels."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def width(text: str, size: float, bold: bool = False) -> float:
    """Width in pixels in DejaVu Sans; other sans-serif fonts are narrower."""
    return float(font(size, bold).getlength(text))


def wrapped(text: str, room: float, size: float, bold: bool = False) -> list[str]:
    """Lines no wider than ``room`` that joined give ``text`` again.

    They are broken after spaces and hyphens, and anywhere in words that are too long for a line.
    """
    lines = [""]
    for token in _TOKEN.findall(text):
        parts = [token] if width(token.rstrip(), size, bold) <= room else list(token)
        for part in parts:
            if lines[-1] and width((lines[-1] + part).rstrip(), size, bold) > room:
                lines.append("")
            lines[-1] += part
    return lines


def _rules_of(sheet: str) -> list[tuple[str, dict[str, str]]]:
    plain = _BLOCK.sub("", _COMMENT.sub("", sheet))
    found = []
    for selectors, body in _RULE.findall(plain):
        pairs = (declaration.split(":", 1) for declaration in body.split(";") if ":" in declaration)
        found.append((selectors.strip(), {name.strip(): value.strip() for name, value in pairs}))
    return found


MARGIN = 14
SCALE = 1.5
"""Pixels of the picture per unit: its letters are then about as large as those of a page of text around it."""

TITLE, LEGEND, CAPTION = 15.0, 12.0, 11.0
KEY = 32
"""Room for the piece of line before a name in the legend."""


def standalone(chart: Chart) -> str:
    """The chart as a complete SVG document on white; the same chart gives the same bytes.

    Lines have the colours they have on the page, unless these would need dashes that fewer lines do without.
    """
    chart = replace(chart, series=_recoloured(chart.series))
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "chart", "role": "img"})
    SubElement(root, "title").text = printable(chart.title)
    caption = f"{chart.caption} {chart.conditions}"
    SubElement(root, "desc").text = printable(f"{chart.description}. {caption}")
    background = SubElement(root, "rect", {"fill": palette()["paper"]})
    y = MARGIN + _lines(root, chart.title, MARGIN, MARGIN, WIDTH, TITLE, "ink", bold=True) + 4
    drawn = ElementTree.fromstring(chart.svg)
    group = SubElement(root, "g", {"transform": f"translate({MARGIN} {_n(y)})"})
    group.extend(drawn)
    y += HEIGHT + 8
    y += _legend(root, chart, y) + 4
    y += _lines(root, caption, MARGIN, y, WIDTH, CAPTION, "soft")
    size = (WIDTH + 2 * MARGIN, round(y + MARGIN))
    root.set("viewBox", f"0 0 {size[0]} {size[1]}")
    for name, units in zip(("width", "height"), size, strict=True):
        root.set(name, _n(SCALE * units))
        background.set(name, str(units))
    _inline(root)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def names(chart: Chart) -> list[str]:
    """What the legend calls the lines: without the numbers of a page, unless names repeat."""
    plain = [one.name for one in chart.series]
    repeated = len(set(plain)) < len(plain)
    return [printable(one.label if repeated else one.name) for one in chart.series]


def _recoloured(series: Sequence[Series]) -> tuple[Series, ...]:
    styles = sorted({one.style for one in series})
    if not styles or styles[-1] < N_STYLES:
        return tuple(series)
    return tuple(replace(one, style=styles.index(one.style)) for one in series)


def _legend(root: Element, chart: Chart, top: float) -> float:
    """Draw it in as many columns as fit; returns its height."""
    texts = names(chart)
    widest = max((width(text, LEGEND) for text in texts), default=0.0) + KEY
    columns = max(1, min(len(texts), int((WIDTH + 16) // (widest + 16))))
    y, tallest = top, 0.0
    for i, (one, text) in enumerate(zip(chart.series, texts, strict=True)):
        if i and i % columns == 0:
            y, tallest = y + tallest, 0.0
        x = MARGIN + (i % columns) * (widest + 16)
        group = SubElement(root, "g", {"transform": f"translate({_n(x)} {_n(y + 3)})"})
        group.extend(ElementTree.fromstring(key(one.style, one.hollow)))
        tallest = max(tallest, _lines(root, text, x + KEY, y, WIDTH - KEY, LEGEND, "ink") + 2)
    return y + tallest - top


def _lines(
    root: Element, text: str, x: float, top: float, room: float, size: float, colour: str, bold: bool = False
) -> float:
    """Write ``text`` wrapped, a text element per line; returns its height."""
    lines = wrapped(printable(text), room, size, bold)
    step = 1.35 * size
    for i, line in enumerate(lines):
        place = {"x": _n(x), "y": _n(top + size + i * step), "font-size": f"{_n(size)}px"}
        weight = {"font-weight": "600"} if bold else {}
        SubElement(root, "text", {**place, **weight, "fill": palette()[colour]}).text = line
    return step * len(lines)


def _inline(root: Element) -> None:
    """Write the page's rules at every element and take its classes away; what it has itself stays."""
    for element in _elements(root):
        classes = element.attrib.pop("class", "").split()
        for name, value in attributes(element.tag, classes).items():
            element.attrib.setdefault(name, value)


def _elements(root: Element) -> Iterator[Element]:
    return (element for element in root.iter() if element.tag not in ("title", "desc"))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
