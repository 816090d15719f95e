"""Each layer imports only what stands above it; torch stays out of the schedule; names are as promised."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastpure

ROOT = Path(fastpure.__file__).parent
LAYERS = [
    {"errors", "files", "intervals", "locks", "signatures", "version"},
    {"schedule"},
    {"kernels"},
    {"nets"},
    {"checkpoints", "classifiers", "data", "zoo"},
    {"guidance"},
    {"reverse"},
    {"methods"},
    {"purify"},
    {"attacks"},
    {"presets"},
    {"anomaly", "certify", "evaluate"},
    {"report"},
    {"train"},
    {"baselines"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem in LEVEL)


def imported(path: Path) -> set[str]:
    """Top-level names under fastpure, and foreign packages, that a file imports."""
    package = ("fastpure", *path.relative_to(ROOT).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_package_has_a_layer():
    assert {layer_of(path) for path in FILES} <= set(LEVEL)
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upwards(path):
    own = layer_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "fastpure" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        # Packages of one level are siblings: they may share files but not form a cycle of their own.
        assert LEVEL[parts[1]] <= LEVEL[own], f"{own} must not import {parts[1]}"


@pytest.mark.parametrize("path", sorted((ROOT / "schedule").glob("*.py")), ids=lambda p: p.name)
def test_schedule_knows_no_torch(path):
    assert not {name for name in imported(path) if name.split(".")[0] == "torch"}


def test_file_sizes():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def length(function: ast.FunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    prose = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - prose


def test_functions_fit_on_a_screen():
    long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and length(node) > 60:
                long.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not long


def test_public_names():
    assert sorted(fastpure.__all__) == [
        "AnomalyDetector",
        "Defense",
        "Denoiser",
        "Purifier",
        "RecordedNoise",
        "Report",
        "Run",
        "attacks",
        "compare",
        "controls",
        "evaluate",
        "load_classifier",
        "load_denoiser",
        "merge",
        "methods",
        "plan",
        "presets",
        "protocols",
    ]
    for name in fastpure.__all__:
        assert getattr(fastpure, name) is not None
