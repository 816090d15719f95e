"""The page's style for pictures that stand alone: its colours and rules, read from its style sheet, and fonts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

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
