"""What a value looks like at a prompt and in a notebook: a few lines of text, and the same as a table of HTML.

A class says what is worth showing, as a `Card`; nobody else writes HTML. The HTML takes its colours from the notebook,
light or dark, and asks for nothing outside of itself.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from html import escape
from typing import Any, final

import numpy as np

Row = tuple[str, str]
"""A name and what is said of it."""

WIDTH = 110
"""Characters in a line of text."""

LINES = 16
"""Most lines of text of one value."""

WRAPPED = 3
"""Lines that one row of it may take."""

LISTED = 10
"""Rows of a table that are shown of many."""

_FRAME = "display:inline-block;max-width:100%;overflow-x:auto;color:inherit;background:transparent"
_TABLE = "border-collapse:collapse;border:0;margin:4px 0;color:inherit;background:transparent"
_ROW = "background:transparent"
_CELL = (
    "text-align:left;vertical-align:top;padding:1px 12px 1px 0;border:0;white-space:pre-wrap;color:inherit"
)
_HEAD = "text-align:right;padding:1px 12px 1px 0;border:0;border-bottom:1px solid currentColor;color:inherit"
_NUMBER = "text-align:right;padding:1px 12px 1px 0;border:0;color:inherit;font-variant-numeric:tabular-nums"


@final
@dataclass(frozen=True)
class Grid:
    """A table with a head, in HTML only; the first column is a name, the others are numbers."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@final
@dataclass(frozen=True)
class Card:
    """What is shown of a value.

    Attributes:
        title: what it is, with the one number that matters.
        rows: the text's lines, and the first rows of the HTML.
        more: rows of the HTML only.
        grids: tables of the HTML.
        alarms: what should not be overlooked.
    """

    title: str
    rows: tuple[Row, ...] = ()
    more: tuple[Row, ...] = ()
    grids: tuple[Grid, ...] = ()
    alarms: tuple[str, ...] = ()

    def text(self) -> str:
        """At most ``LINES`` lines of at most ``WIDTH`` characters."""
        alarms = [("WARNING", alarm) for alarm in self.alarms]
        width = max((len(name) for name, _ in (*self.rows, *alarms)), default=0)
        lines = [line for name, value in self.rows for line in _wrapped(name, value, width, WRAPPED)]
        lines += [line for name, value in alarms for line in _wrapped(name, value, width, 1)]
        if len(lines) > LINES - 1:
            lines = [*lines[: LINES - 2], f"  … {len(lines) - LINES + 2} more lines; print() shows all"]
        return "\n".join([textwrap.shorten(self.title, WIDTH, placeholder=" …"), *lines])

    def html(self) -> str:
        """A ``div`` that is well-formed XML too."""
        rows = "".join(_pair(name, value) for name, value in (*self.rows, *self.more))
        alarms = "".join(_pair("⚠ warning", alarm, bold=True) for alarm in self.alarms)
        table = f'<table style="{_TABLE}"><tbody>{rows}{alarms}</tbody></table>' if rows or alarms else ""
        grids = "".join(map(_grid, self.grids))
        return f'<div style="{_FRAME}"><strong>{_safe(self.title)}</strong>{table}{grids}</div>'


class Shown:
    """Base of what is shown as a card. A dataclass says ``repr=False``, so that this ``__repr__`` counts."""

    def _shown(self) -> Card:
        raise NotImplementedError

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        return self._shown().html()


_IN_FULL: ContextVar[bool] = ContextVar("in_full", default=False)


@contextmanager
def in_full() -> Iterator[None]:
    """Inside, ``repr`` of a `ShownModule` is the printed structure of all its parts, as torch prints modules.

    Checksums of networks hold that text, and must not change with what is shown to people.
    """
    token = _IN_FULL.set(True)
    try:
        yield
    finally:
        _IN_FULL.reset(token)


class ShownModule(Shown):
    """`Shown` for modules of torch: to be named before ``nn.Module`` among the bases."""

    def __repr__(self) -> str:
        return super(Shown, self).__repr__() if _IN_FULL.get() else self._shown().text()


class Settings(Shown):
    """For dataclasses of plain settings: their own ``repr`` is short, and a notebook shows them as a table."""

    def _shown(self) -> Card:
        if not is_dataclass(self):
            return Card(type(self).__name__)
        told = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self) if field.repr]
        rows = [(name, brief(value)) for name, value in told if value is not None]
        return Card(type(self).__name__, tuple(rows))


class Fields(Settings):
    """For dataclasses that hold tensors, in one line: of tensors dtype and shape, in place of their values."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self._shown().rows)})"


_BRIEF = reprlib.Repr()
_BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxtuple, _BRIEF.maxlist, _BRIEF.maxdict = 120, 160, 8, 8, 8


def brief(value: object) -> str:
    """A value in less than a line: text as it is, of arrays dtype and shape."""
    if isinstance(value, str):
        return value
    if isinstance(value, Fields):
        return repr(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Shown):
        return value._shown().title
    if isinstance(value, list | tuple) and any(isinstance(item, Shown) for item in value):
        return ", ".join(brief(item) for item in value)
    return _BRIEF.repr(value)


def described(module: Any) -> str:
    """A module of torch in less than a line: its class, and how many numbers were trained in it."""
    if isinstance(module, ShownModule) and not hasattr(module, "network"):
        return module._shown().title
    network = getattr(module, "network", module)
    n = sum(weight.numel() for weight in network.parameters())
    return f"{type(network).__name__}, {n:,} parameters"


def spread(values: Any, form: str = ".4g") -> str:
    """Mean and range of an array of numbers or a tensor, in words; NaN counts as not known."""
    array = numbers(values)
    known = array[~np.isnan(array)]
    if not len(known):
        return "not known"
    low, high = float(known.min()), float(known.max())
    if f"{low:{form}}" == f"{high:{form}}":
        return f"{low:{form}}"
    mean = float(known.mean()) if math.isfinite(low) and math.isfinite(high) else math.inf
    of = "" if len(known) == len(array) else f", known for {len(known)} of {len(array)}"
    return f"mean {mean:{form}}, {low:{form}} to {high:{form}}{of}"


def numbers(values: Any) -> np.ndarray:
    """A tensor or an array as float64 [N]."""
    found = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.asarray(found, dtype=np.float64).reshape(-1)


def per_image(title: str, names: Sequence[str], columns: Sequence[Any], form: str = ".4g") -> Grid:
    """The first ``LISTED`` images of columns of numbers [B], a row each."""
    arrays = [numbers(column) for column in columns]
    n = len(arrays[0])
    rows = [(str(i), *(f"{array[i]:{form}}" for array in arrays)) for i in range(min(n, LISTED))]
    return Grid(title if n <= LISTED else f"{title}, the first {LISTED} of {n}", ("", *names), tuple(rows))


def size(shape: Iterable[int]) -> str:
    """ "3x32x32"."""
    return "x".join(map(str, shape))


def _wrapped(name: str, value: str, width: int, most: int) -> list[str]:
    indent = " " * (width + 4)
    lines = textwrap.wrap(
        value, WIDTH, initial_indent=indent, subsequent_indent=indent, max_lines=most, placeholder=" …"
    ) or [indent]
    return [f"  {name:<{width}}  {lines[0][width + 4 :]}".rstrip(), *lines[1:]]


def _safe(text: str) -> str:
    # What XML has no place for would be no HTML either: file names may hold anything.
    return escape("".join(c if c.isprintable() or c in "\n\t" else "�" for c in text))


def _pair(name: str, value: str, *, bold: bool = False) -> str:
    cell = f"{_CELL};font-weight:bold" if bold else _CELL
    return (
        f'<tr style="{_ROW}"><th style="{_CELL};font-weight:normal;opacity:0.7">{_safe(name)}</th>'
        f'<td style="{cell}">{_safe(value)}</td></tr>'
    )


def _grid(grid: Grid) -> str:
    heads = "".join(f'<th style="{_HEAD}">{_safe(head)}</th>' for head in grid.heads)
    rows = "".join(
        f'<tr style="{_ROW}">'
        + "".join(
            f'<td style="{_CELL if i == 0 else _NUMBER}">{_safe(cell)}</td>' for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in grid.rows
    )
    return (
        f'<div style="margin-top:6px">{_safe(grid.title)}</div><table style="{_TABLE}">'
        f'<thead><tr style="{_ROW}">{heads}</tr></thead><tbody>{rows}</tbody></table>'
    )
