"""Runs made once for all tests of reports, and a reader of pages that trusts nothing."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import torch
from torch import nn

import fastpure as fp
from fastpure.data import Dataset
from tests.evaluate.toys import attack, dataset, defense

VOID = {"meta", "img", "br", "link", "input", "hr", "source"}
HOSTILE = "<script>alert('x') & \"y\""


def run(
    path: Path, defended: nn.Module | None = None, attacked=None, protocol=None, data: Dataset | None = None
):
    """Evaluate into ``path`` and return it."""
    protocol = protocol or fp.protocols.fresh(4)
    data = dataset(16) if data is None else data
    fp.evaluate(defended or defense(), data, attacked, protocol, out=path, batch_size=16, progress=False)
    return path


def runs(folder: Path) -> list[Path]:
    """A bare classifier, the same purified under two attacks, and a run without attack."""
    return [
        run(folder / "bare.sqlite", defense().classifier, attack(eps=0.1)),
        run(folder / f"{HOSTILE}.sqlite", defense(), attack(eps=0.1)),
        run(folder / "coup=long.sqlite", defense(), attack(eps=0.1, n_iter=12)),
        run(folder / "clean.sqlite", defense(seed=3)),
    ]


def hostile_data(n: int = 4) -> Dataset:
    """Images whose class names are markup, in colour."""
    x = torch.rand((n, 1, 4, 4), generator=torch.Generator().manual_seed(5))
    return Dataset(
        x, (x.mean((1, 2, 3)) > 0.5).long(), torch.arange(n), ("<img src=x onerror=1>", "</td>"), "<b>", "t"
    )


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"repeated attribute in {tag}: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def text_of(self) -> str:
        """All text, blanks joined."""
        return " ".join("".join(self.text).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]
