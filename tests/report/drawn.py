"""What pictures are made from, for tests: the page's values and its charts."""

from __future__ import annotations

from contextlib import ExitStack

from fastpure.report.chart import Chart
from fastpure.report.data import open_entries
from fastpure.report.page import collect

SVG = "{http://www.w3.org/2000/svg}"
MOTLEY = "images-script-alert-x-y-script.png"


def values_of(runs, options, given=()):
    with ExitStack() as stack:
        return collect(open_entries(runs, stack), options, given)


def charts_of(values) -> list[Chart]:
    return [*values["sweeps"], *values["traces"], *values["walks"]]
