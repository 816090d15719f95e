"""What pictures are made from, for tests: the page's values and its charts."""

from __future__ import annotations

from contextlib import ExitStack
from xml.etree.ElementTree import Element

from fastpure.report.charts import Chart
from fastpure.report.data import open_entries
from fastpure.report.page import collect

SVG = "{http://www.w3.org/2000/svg}"
MOTLEY = "images-script-alert-x-y-script.png"


def values_of(runs, options, given=()):
    with ExitStack() as stack:
        return collect(open_entries(runs, stack), options, given)


def charts_of(values) -> list[Chart]:
    return [*values["sweeps"], *values["traces"], *values["walks"]]


def lines_of(root: Element) -> dict[str, list[tuple[float, float]]]:
    """Every line of a drawn chart by its name: its points, in units of the drawing."""
    found = {}
    for group in root.iter():
        children = {child.tag.removeprefix(SVG): child for child in group}
        if group.tag.removeprefix(SVG) == "g" and {"title", "path"} <= set(children):
            words = children["path"].get("d").replace("M", " ").replace("L", " ").split()
            numbers = [float(word) for word in words]
            found[children["title"].text] = list(zip(numbers[::2], numbers[1::2], strict=True))
    return found
