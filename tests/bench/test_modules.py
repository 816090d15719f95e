"""Every benchmark can at least be imported: `make bench` runs them all, and nothing else does."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import bench

MODULES = sorted(path.stem for path in Path(bench.__path__[0]).glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports(name):
    if name == "bench_apgd":
        pytest.importorskip("pyautoattack")
    assert importlib.import_module(f"bench.{name}").__doc__
