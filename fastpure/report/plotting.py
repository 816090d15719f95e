"""What matplotlib draws for us: one look, one palette, text that is measured, and files that are the same every time.

Nothing is shown on a screen, and no setting of the caller's matplotlib changes a picture.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

PALETTE = {
    "paper": "#ffffff",
    "ink": "#1c1d20",
    "soft": "#5c6068",
    "rule": "#dcdcd6",
    "good": "#17683f",
    "bad": "#a3301f",
    "s0": "#0b62a4",
    "s1": "#c2491d",
    "s2": "#168a62",
    "s3": "#9a4d8f",
    "s4": "#a5780a",
    "s5": "#2b95c2",
    "s6": "#6b6b6b",
    "s7": "#7a3b2e",
}
"""Colours of pictures by the names that the page's style sheet has for them: its light ones, on white."""

LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastpure",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "lines.scale_dashes": False,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "lines.dash_capstyle": "round",
    "lines.dash_joinstyle": "round",
}
"""Where the look differs from matplotlib's own. PDF has whole fonts, as publishers want them."""

SAME = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Format -> what files of it say about themselves: neither when they were made nor with which version."""

DPI = 144
"""Pixels of a PNG by inch of the drawing."""

_TOKEN = re.compile(r"[^\s-]*-?\s*")


@contextmanager
def look() -> Iterator[None]:
    """Draw in it: matplotlib's defaults and `LOOK`, whatever the caller has set; letters without a shape are boxes."""
    import matplotlib
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context(["default", LOOK]):
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def pyplot() -> Any:
    """``matplotlib.pyplot`` without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def png(figure: Any, dpi: int = 110) -> bytes:
    """The figure of `pyplot` as a PNG, and its end; the same figure gives the same bytes."""
    try:
        return saved(figure, "png", dpi)
    finally:
        pyplot().close(figure)


def saved(figure: Any, kind: str, dpi: float = DPI) -> bytes:
    """A figure as "svg", "png" or "pdf"; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=SAME[kind])
    return buffer.getvalue()


def perturbation(noise: np.ndarray) -> tuple[np.ndarray, str]:
    """What was added to images [N, C, H, W] as pictures [N, 3, H, W] in [0, 1], and how to read them.

    The scale is symmetric about zero and one for all of them: nothing is in the middle of it, the largest change of a
    pixel at its end. Images of one channel become white where nothing was added, red where they became brighter and
    blue where darker; those of three keep their channels, grey is nothing.
    """
    from matplotlib import colormaps

    largest = float(np.abs(noise).max(initial=0.0))
    if noise.shape[1] == 3:
        factor = 0.5 / largest if largest > 0 else 1.0
        return 0.5 + factor * noise, f"{factor:.3g} times magnified, grey is none"
    share = 0.5 + 0.5 * noise[:, 0] / (largest or 1.0)
    coloured = np.moveaxis(colormaps["RdBu_r"](share)[..., :3], -1, 1)
    return coloured, f"up to {largest:.3g}: red brighter, blue darker, white none"


@cache
def font(size: float, bold: bool = False) -> Any:
    """DejaVu Sans, which comes with matplotlib, as a `PIL.ImageFont.FreeTypeFont`; ``size`` in pixels."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def width(text: str, size: float, bold: bool = False) -> float:
    """Width in DejaVu Sans in the unit of ``size``; other sans-serif fonts are narrower."""
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


def printable(text: str) -> str:
    """``text`` on one line and without control characters and halves of characters, which XML cannot hold."""
    return "".join(" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in text)


SPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")


def tidied(figure: Any, names: Mapping[str, str]) -> Element:
    """The figure's SVG without what refers to anything: no style sheet, identifier, reference, clipping or font.

    Args:
        names: identifier of a group -> its name, which a reader sees when pointing at it.
    """
    ElementTree.register_namespace("", SPACE[1:-1])
    root = ElementTree.parse(io.BytesIO(saved(figure, "svg"))).getroot()
    shapes = {shape.attrib["id"]: shape.attrib for shape in root.iter(f"{SPACE}path") if "id" in shape.attrib}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SPACE}defs", f"{SPACE}metadata"):
                parent.remove(child)
            elif child.tag == f"{SPACE}use":
                x, y = child.attrib["x"], child.attrib["y"]
                child.tag = f"{SPACE}path"
                style = child.attrib["style"]
                child.attrib = {
                    "d": shapes[child.attrib[_LINK][1:]]["d"],
                    "transform": f"translate({x} {y})",
                    "style": style,
                }
    for one in root.iter():
        known = names.get(one.attrib.pop("id", ""))
        if known is not None:
            one.insert(0, element("title", printable(known)))
        one.attrib.pop("clip-path", None)
        if "d" in one.attrib:
            one.set("d", " ".join(one.attrib["d"].split()))
        if one.tag == f"{SPACE}text":
            one.set("style", _FAMILY.sub("", one.attrib["style"]))
            if one.attrib.get("transform", "").startswith("rotate(-0 "):
                one.attrib.pop("transform")
        one.text = one.text if (one.text or "").strip() else None
        one.tail = None
    root.set("stroke-linejoin", "round")
    return root


def element(tag: str, text: str) -> Element:
    """An SVG element that holds text only."""
    made = Element(f"{SPACE}{tag}")
    made.text = text
    return made
