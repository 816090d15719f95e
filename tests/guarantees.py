"""Measures the figures of docs/guarantees.md and writes them there: ``python -m tests.guarantees`` (minutes).

The same trials are tests (marked slow): here they are counted for people.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from tests.checkpoints.fuzz import fuzz_readers
from tests.datasets.fuzzing import fuzz
from tests.evaluate.test_store_flips import flip_all
from tests.evaluate.toys import evaluate
from tests.faults import COUNTS, fault_counts

PAGE = Path(__file__).parents[1] / "docs" / "guarantees.md"
BEGIN, END = "<!-- figures: python -m tests.guarantees -->", "<!-- end of figures -->"


def figures() -> str:
    """The tables, as Markdown."""
    lines = ["| command | " + " | ".join(COUNTS) + " |", "|---|" + "---:|" * len(COUNTS)]
    for name, counts in fault_counts(say=lambda text: print(text, file=sys.stderr)).items():
        lines.append(f"| {name} | " + " | ".join(str(counts[kind]) for kind in COUNTS) + " |")
    with tempfile.TemporaryDirectory() as folder:
        evaluate(Path(folder) / "run.sqlite", n=24, batch_size=8)
        flips = flip_all(Path(folder) / "run.sqlite", Path(folder), 500, seed=0)
    lines += ["", "| " + " | ".join(flips) + " |", "|" + "---:|" * len(flips)]
    lines.append("| " + " | ".join(str(n) for n in flips.values()) + " |")
    kinds = ("inputs", "tracebacks", "hangs", "allocations", "executed")
    lines += ["", "| readers | " + " | ".join(kinds) + " |", "|---|" + "---:|" * len(kinds)]
    readers = {"pictures, folders, archives": fuzz(), "weights, configurations": fuzz_readers()}
    for name, found in readers.items():
        lines.append(f"| {name} | " + " | ".join(str(found[kind]) for kind in kinds) + " |")
    return "\n".join(lines)


def main() -> None:
    """Put the figures where the page has them."""
    torch.set_num_threads(1)
    text = PAGE.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:before]}\n\n{figures()}\n\n{text[after:]}")


if __name__ == "__main__":
    main()
