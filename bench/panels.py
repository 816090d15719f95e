"""Several charts as one picture: the report's charts side by side, as SVG and, drawn from it, as PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from fastpure.report.chart import Chart
from fastpure.report.standalone import font, standalone

SPACE = "{http://www.w3.org/2000/svg}"
FINE = 2
"""Pixels are drawn that much smaller and averaged, because Pillow's lines have no soft edges."""


def panels(charts: Sequence[Chart], columns: int = 2) -> str:
    """An SVG document with the charts in rows of ``columns``, each with its title, legend and caption."""
    ElementTree.register_namespace("", SPACE[1:-1])
    parts = [ElementTree.fromstring(standalone(chart)) for chart in charts]
    sizes = [tuple(float(part.attrib[name]) for name in ("width", "height")) for part in parts]
    root = Element(f"{SPACE}svg", {"role": "img"})
    SubElement(root, f"{SPACE}title").text = "; ".join(chart.title for chart in charts)
    width, top = max((size[0] for size in sizes), default=1.0), 0.0
    for i in range(0, len(parts), columns):
        for column, part in enumerate(parts[i : i + columns]):
            root.append(_moved(part, column * width, top))
        top += max(size[1] for size in sizes[i : i + columns])
    whole = (width * min(columns, max(len(parts), 1)), max(top, 1.0))
    root.attrib |= {"width": f"{whole[0]:g}", "height": f"{whole[1]:g}"}
    root.set("viewBox", f"0 0 {whole[0]:g} {whole[1]:g}")
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _moved(document: Element, x: float, y: float) -> Element:
    """A document as a group: not every program knows documents inside documents."""
    said = dict(document.attrib)
    scale = float(said["width"]) / float(said["viewBox"].split()[2])
    for name in ("width", "height", "viewBox", "role"):
        said.pop(name, None)
    group = Element(f"{SPACE}g", {**said, "transform": f"translate({x:g} {y:g}) scale({scale:g})"})
    group.extend(document)
    return group


def png(svg: str) -> bytes:
    """The picture of an SVG document that is made of what the report's charts are made of.

    Raises:
        ValueError: an element that is none of these.
    """
    from PIL import Image, ImageDraw

    root = ElementTree.fromstring(svg)
    width, height = (math.ceil(float(root.attrib[name])) for name in ("width", "height"))
    image = Image.new("RGB", (FINE * width, FINE * height), "white")
    _Canvas(image, ImageDraw.Draw(image)).draw(root, 0.0, 0.0, float(FINE), {})
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BOX).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


class _Canvas:
    """Draws elements at an offset and a scale; what is not said at one is inherited from those around it."""

    def __init__(self, image, pen) -> None:  # type: ignore[no-untyped-def]
        self.image, self.pen = image, pen

    def draw(self, one: Element, x: float, y: float, scale: float, said: dict[str, str]) -> None:
        kind, said = one.tag.removeprefix(SPACE), said | one.attrib
        if kind in ("title", "desc"):
            return
        if kind == "g" and "transform" in one.attrib:  # translate, and scale
            across, down, *larger = _numbers(one.attrib["transform"])
            x, y = x + scale * across, y + scale * down
            scale *= larger[0] if larger else 1.0
        elif kind not in ("svg", "g"):
            getattr(self, f"_{kind}", self._unknown)(one, x, y, scale, said)
            return
        own = {name: value for name, value in said.items() if name not in ("x", "y", "transform")}
        for child in one:
            self.draw(child, x, y, scale, own)

    def _unknown(self, one: Element, *where: object) -> None:
        raise ValueError(f"no chart of a report has the element {one.tag}")

    def _rect(self, one: Element, x: float, y: float, scale: float, said: dict[str, str]) -> None:
        left, top = x + scale * _number(one, "x"), y + scale * _number(one, "y")
        right, bottom = left + scale * _number(one, "width"), top + scale * _number(one, "height")
        self.pen.rectangle((left, top, right, bottom), fill=said.get("fill"))

    def _line(self, one: Element, x: float, y: float, scale: float, said: dict[str, str]) -> None:
        ends = [(x + scale * _number(one, f"x{i}"), y + scale * _number(one, f"y{i}")) for i in (1, 2)]
        self._stroke(ends, scale, said)

    def _polyline(self, one: Element, x: float, y: float, scale: float, said: dict[str, str]) -> None:
        values = _numbers(one.attrib["points"])
        points = zip(values[::2], values[1::2], strict=True)
        self._stroke([(x + scale * a, y + scale * b) for a, b in points], scale, said)

    def _circle(self, one: Element, x: float, y: float, scale: float, said: dict[str, str]) -> None:
        a, b, r = (scale * _number(one, name) for name in ("cx", "cy", "r"))
        edge = said.get("stroke", "none")
        width = scale * float(said.get("stroke-width", 1)) if edge != "none" else 0.0
        box = (x + a - r - width / 2, y + b - r - width / 2, x + a + r + width / 2, y + b + r + width / 2)
        fill = None if said.get("fill") == "none" else said.get("fill")
        self.pen.ellipse(box, fill=fill, outline=edge if width else None, width=round(width))

    def _text(self, one: Element, x: float, y: float, scale: float, said: dict[str, str]) -> None:
        size = scale * float(said.get("font-size", "12").removesuffix("px"))
        letters = font(size, said.get("font-weight") == "600")
        anchor = {"middle": "ms", "end": "rs"}.get(said.get("text-anchor", ""), "ls")
        colour, text = said.get("fill", "black"), one.text or ""
        if "transform" not in one.attrib:
            place = (x + scale * _number(one, "x"), y + scale * _number(one, "y"))
            self.pen.text(place, text, fill=colour, font=letters, anchor=anchor)
            return
        from PIL import Image, ImageDraw

        across, down, _ = _numbers(one.attrib["transform"])  # translate, and rotate(-90)
        width, height = math.ceil(letters.getlength(text)) + 2, math.ceil(1.5 * size)
        mask = Image.new("L", (width, height), 0)
        ImageDraw.Draw(mask).text((width / 2, size), text, fill=255, font=letters, anchor="ms")
        mask = mask.rotate(90, expand=True)
        corner = (round(x + scale * across - size), round(y + scale * down - width / 2))
        self.image.paste(Image.new("RGB", mask.size, colour), corner, mask)

    def _stroke(self, points: list[tuple[float, float]], scale: float, said: dict[str, str]) -> None:
        from PIL import Image, ImageColor

        width = max(1, round(scale * float(said.get("stroke-width", "1"))))
        inks = [Image.new("RGB", (1, 1), ImageColor.getrgb(c)) for c in ("white", said["stroke"])]
        colour = Image.blend(inks[0], inks[1], float(said.get("opacity", "1"))).getpixel((0, 0))
        dashes = [scale * length for length in _numbers(said.get("stroke-dasharray", ""))]
        for piece in _dashed(points, dashes) if dashes else [points]:
            self.pen.line(piece, fill=colour, width=width, joint="curve")


def _dashed(
    points: Sequence[tuple[float, float]], dashes: Sequence[float]
) -> Iterator[list[tuple[float, float]]]:
    """The pieces of a line that are drawn; ``dashes`` are lengths drawn and left out in turn."""
    number, left = 0, dashes[0]
    for (a, b), (c, d) in pairwise(points):
        whole, done = math.hypot(c - a, d - b), 0.0
        while whole - done > 1e-9:
            step = min(left, whole - done)
            if number % 2 == 0:
                yield [
                    (a + (c - a) * share / whole, b + (d - b) * share / whole)
                    for share in (done, done + step)
                ]
            done, left = done + step, left - step
            if left <= 1e-9:
                number += 1
                left = dashes[number % len(dashes)]


def _number(one: Element, name: str) -> float:
    return float(one.attrib.get(name, "0"))


def _numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+\.?\d*", text)]
