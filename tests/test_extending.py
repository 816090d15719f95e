"""Every block of docs/extending.md runs, in order within its section, and leaves nothing registered behind."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastpure import attacks, guidance, methods
from fastpure.checkpoints.loading import FORMATS
from fastpure.kernels import OPS
from fastpure.nets import ARCHITECTURES
from fastpure.reverse import EXECUTORS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
REGISTRIES = (attacks.ATTACKS, guidance.GUIDANCE, methods.METHODS, FORMATS, OPS, ARCHITECTURES, EXECUTORS)
NEEDS = {"A method": ("A guidance",)}
"""Sections that go on from others."""


def sections() -> dict[str, list[str]]:
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.M)[1:]
    return {
        title: re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.fixture(autouse=True)
def registries():
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize("title", sections())
def test_the_page_runs(title, capsys, monkeypatch):
    found, module = sections(), ModuleType("extending")
    monkeypatch.setitem(
        sys.modules, module.__name__, module
    )  # where dataclasses look for what they are made of
    assert found[title], "a section without an example shows nothing"
    for block in (block for part in (*NEEDS.get(title, ()), title) for block in found[part]):
        exec(compile(block, f"{PAGE.name}: {title}", "exec"), module.__dict__)


def test_what_the_page_names_exists():
    package = PAGE.parents[1] / "fastpure"
    for folder in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", PAGE.read_text().split("## ")[0]):
        where = package / folder if (package / folder).exists() else PAGE.parents[1] / folder
        assert where.exists(), folder
