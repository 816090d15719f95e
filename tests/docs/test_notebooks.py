"""The notebooks run from a fresh kernel, and what is stored in them is what comes out, in kind if not in digits."""

from __future__ import annotations

import base64
import importlib
import json
import os

import pytest

from tests.docs.pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 200_000
"""Bytes of a notebook, and of the pictures in it."""


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def kinds(outputs) -> list[str]:
    """What a cell gave: printed text once, however it was cut, and the forms of each value and picture."""
    found = []
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream" and output["name"] == "stderr":
            continue  # a warning of somebody's library is nothing that the page shows
        if kind in ("display_data", "execute_result"):
            data = set(output["data"])
            kind = "picture" if "image/png" in data else " ".join(sorted(data))
        if kind != "stream" or "stream" not in found[-1:]:
            found.append(kind)
    return found


def test_there_are_six():
    assert len(NOTEBOOKS) == 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_whole_and_small(path):
    assert path.stat().st_size < LARGEST
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run it from the top"
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            picture = output.get("data", {}).get("image/png")
            assert picture is None or len(base64.b64decode(picture)) < 40_000
    assert sum(bool(cell["outputs"]) for cell in code) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_goes_before_code(path):
    found = cells(path)
    assert found[0]["cell_type"] == "markdown"
    assert "".join(found[0]["source"]).startswith("# ")
    prose = [cell for cell in found if cell["cell_type"] == "markdown"]
    assert len(prose) >= len(found) / 3
    for cell in found:
        lines = "".join(cell["source"]).splitlines()
        assert len(lines) <= 30, "one idea per cell"
        assert all(len(line) <= 140 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_gives_what_is_stored(path, tmp_path, monkeypatch):
    for package in ("nbclient", "nbformat", "ipykernel", *(("foolbox",) if "libraries" in path.stem else ())):
        if os.environ.get("FASTPURE_DOCS") == "1":
            importlib.import_module(package)
        pytest.importorskip(package)
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    stored = [kinds(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    now = [kinds(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    for number, (before, after) in enumerate(zip(stored, now, strict=True), 1):
        assert after == before, f"cell {number}: run the notebook again and store it"
