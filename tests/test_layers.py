"""Each layer imports only what stands above it, without circles; torch stays out of the schedule; names resolve."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fastpure

ROOT = Path(fastpure.__file__).parent
LAYERS = [
    {
        "errors",
        "files",
        "heap",
        "intervals",
        "locks",
        "neighbours",
        "norms",
        "openmp",
        "pickles",
        "progress",
        "readers",
        "shown",
        "signatures",
        "threads",
        "trackers",
        "version",
        "words",
    },
    {"schedule"},
    {"kernels"},
    {"nets"},
    {"checkpoints", "classifiers", "data", "hub", "zoo"},
    {"guidance"},
    {"reverse"},
    {"methods"},
    {"purify"},
    {"attacks"},
    {"diagnostics"},
    {"presets"},
    {"anomaly", "certify", "evaluate"},
    {"report"},
    {"train"},
    {"baselines"},
    {"reproduce"},
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


def name_of(path: Path) -> str:
    """``fastpure.reverse.step`` for that file, ``fastpure.reverse`` for the package's face (``__init__.py``)."""
    parts = ("fastpure", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def around(name: str) -> set[str]:
    """The packages that a module lies in, and itself."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


def import_graph(root: Path) -> dict[str, set[str]]:
    """What each module of the package imports: anywhere in the file, late and type-only imports included.

    ``from ..reverse import Process`` is an edge to the face of ``reverse``, and the face has edges to its modules.
    An import from another package runs that package's face first, whichever module it names.
    """
    modules = {name_of(path): path for path in sorted(root.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = {full if full in modules else full.rpartition(".")[0] for full in imported(path)}
        targets = found & set(modules)
        faces = set().union(*(around(target) for target in targets)) - around(name)
        graph[name] = targets | faces
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, the last one being the first; empty if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


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
        # Packages of one level are siblings: they may import each other, but not in a circle (below).
        assert LEVEL[parts[1]] <= LEVEL[own], f"{own} must not import {parts[1]}"


def test_imports_form_no_circle():
    graph = import_graph(ROOT)
    assert len(graph) > 100
    found = circle(graph)
    assert not found, "each imports the next: " + " -> ".join(found)


def test_no_module_imports_the_face_of_its_own_package():
    """It would be run in the middle of it. The commands are users of ``fastpure`` and may import that face."""
    inside = {
        f"{name} imports {target}"
        for name, targets in import_graph(ROOT).items()
        for target in targets & around(name)
        if target != "fastpure" or not name.startswith("fastpure.cli.")
    }
    assert not inside


@pytest.mark.parametrize(
    "line",
    ["from .b import B", "def late():\n    from . import b", "if TYPE_CHECKING:\n    from ..p import B"],
    ids=["plain", "late", "type-only"],
)
def test_every_kind_of_circle_is_found(tmp_path, monkeypatch, line):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "p" / "__init__.py").write_text("from .b import B")
    (tmp_path / "p" / "a.py").write_text(line)
    (tmp_path / "p" / "b.py").write_text("from .a import A")
    assert set(circle(import_graph(tmp_path))) >= {"fastpure.p.a", "fastpure.p.b"}
    (tmp_path / "p" / "a.py").write_text("")
    assert not circle(import_graph(tmp_path))


@pytest.mark.parametrize("path", sorted((ROOT / "schedule").glob("*.py")), ids=lambda p: p.name)
def test_schedule_knows_no_torch(path):
    assert not {name for name in imported(path) if name.split(".")[0] == "torch"}


def length(function: ast.FunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    prose = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - prose


def test_sizes():
    """A file is split where a reader would look in another place, not at a number; these are where to ask."""
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 500}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (n := length(node)) > 80:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = n
    assert not long


def test_public_names():
    assert len(fastpure.__all__) == len(set(fastpure.__all__)) > 10
    for name in fastpure.__all__:
        assert getattr(fastpure, name) is not None


def test_public_names_are_where_type_checkers_read():
    """The face imports names when they are used; its imports for type checkers must name the same things."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    read = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            module = importlib.import_module(f"fastpure.{node.module}" if node.module else "fastpure")
            read[alias.asname] = getattr(module, alias.name)
    assert set(read) == {*fastpure.__all__, "__version__"}
    for name, value in read.items():
        assert getattr(fastpure, name) is value, name
    assert set(read) <= set(dir(fastpure))


@pytest.mark.parametrize("first", ["import fastpure.evaluate, fastpure.presets", "import fastpure.cli.main"])
def test_names_that_are_called_like_a_package(first):
    code = (
        f"{first}\nimport fastpure as fp\nfrom fastpure.evaluate import merge\nfp.Run\n"
        "assert callable(fp.evaluate) and fp.presets['coup-cifar10-linf']\n"
        "assert fp.kernels.Domain and not hasattr(fp, 'nothing') and not hasattr(fp, '_nothing')\n"
        "from fastpure import *\nassert evaluate is fp.evaluate and methods.coup\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
