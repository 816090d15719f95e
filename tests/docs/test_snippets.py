"""Every Python block of README and site runs, in order within its page, in the page's own folder.

Budgets are made small first (``SMALL``); everything else runs as it stands. Where a page begins in the middle
("attack(defense, x, y)"), the names below are there, as the pages use them everywhere: a small defence of digits. A
block that cannot run here says why in a comment before it, and is compiled all the same.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shutil
import sys
from types import ModuleType

import pytest
import torch
from PIL import Image

import fastpure as fp
from fastpure.data import load_dataset
from tests.docs.pages import PAGES, ROOT, blocks

ELSEWHERE = {"extending.md": "tests/test_extending.py"}
"""Pages that another test runs."""
SMALL = {"n_iter": 2, "eot_iter": 2, "draws": 4, "n": 40, "n0": 20, "budget": 25, "runs": 1}
"""Settings that say how much is computed -> what is enough to see that it runs."""
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
RUN = [
    page
    for page in WITH_PYTHON
    if page.name not in ELSEWHERE
    and any(block.language == "python" and not block.why_not for block in blocks(page))
]


def usual_names() -> dict[str, object]:
    """What pages take for granted."""
    torch.manual_seed(0)
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    method = fp.methods.diffpure(t=0.05, dt=0.05)
    purifier = fp.Purifier(denoiser, method)
    dataset = load_dataset("digits", "test").subset(2)
    x, y, ids = dataset.images, dataset.labels, dataset.sample_ids
    defense = fp.Defense(purifier, classifier)
    coup = fp.Defense(fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.05, dt=0.05)), classifier)
    return {
        "fp": fp,
        "torch": torch,
        "denoiser": denoiser,
        "classifier": classifier,
        "method": method,
        "purifier": purifier,
        "defense": defense,
        "model": defense,
        "coup": coup,
        "dataset": dataset,
        "x": x,
        "x_adv": (x + 0.1).clamp(0, 1),
        "y": y,
        "images": x,
        "labels": y,
        "ids": ids,
        "sample_ids": ids,
        "normal": x,
        "anomalous": torch.tensor([False, True]),
        "threshold": 1.0,
        "x_numpy": x.numpy(),
        "y_numpy": y.numpy(),
    }


def made_small(code: str) -> str:
    """Settings by keyword with at most the numbers of ``SMALL``; lines stay where they are."""

    def less(match: re.Match[str]) -> str:
        return f"{match[1]}={min(int(match[2]), SMALL[match[1]])}"

    return re.sub(rf"\b({'|'.join(SMALL)})=(\d+)\b", less, code)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of a weaker defence and a photo, and the usual names."""
    folder = tmp_path_factory.mktemp("pages")
    names = usual_names()
    attack = fp.attacks.PGD(eps=8 / 255, n_iter=1, eot_iter=1)
    out = folder / "runs" / "diffpure.sqlite"
    fp.evaluate(names["defense"], names["dataset"], attack, fp.protocols.fresh(2), out, progress=False)
    (folder / "photos").mkdir()
    Image.new("RGB", (40, 36), (90, 120, 200)).save(folder / "photos" / "a.png")
    return folder, names


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """That folder's content in one of the page's own, and a copy of the names."""
    folder, names = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return dict(names)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_compiles_and_gives_a_reason_where_it_does_not_run(page):
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text, filename=block.name)
        assert block.mark in ("", "run") or block.why_not or block.needs or "figures" in block.mark, (
            block.mark
        )


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_page_runs(page, place, capsys, monkeypatch):
    module = ModuleType("page")
    module.__dict__.update(place)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look
    for block in blocks(page):
        if block.language != "python" or block.why_not or not all(map(there, block.needs)):
            continue
        # Lines keep their numbers, so that a traceback points into the page.
        exec(compile("\n" * (block.line - 1) + made_small(block.text), str(page), "exec"), module.__dict__)


def there(package: str) -> bool:
    """Whether a package is installed; where all are said to be, one that is missing is a failure."""
    if os.environ.get("FASTPURE_PEERS") == "1":
        importlib.import_module(package)
    return importlib.util.find_spec(package) is not None


def test_most_pages_run():
    assert len(RUN) >= len(WITH_PYTHON) - 3
