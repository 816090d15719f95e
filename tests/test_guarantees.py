"""docs/guarantees.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()


def test_every_test_that_is_named_exists():
    files = set(re.findall(r"`((?:tests|\.ci)/[\w/.]+?)(?:::|`)", TEXT))
    assert len(files) > 15
    for file in files:
        assert (ROOT / file).exists(), file
    functions = set(re.findall(r"\b(test_\w+)`", TEXT)) - {Path(file).stem for file in files}
    assert len(functions) > 5
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in functions:
        assert f"def {name}(" in code, name
