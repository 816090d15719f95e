"""Mutated pictures, arrays, archives, pickles and folders are read or refused in a sentence, and do nothing else."""

from __future__ import annotations

import sys

import pytest

from tests.datasets.fuzzing import fuzz

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc"),
]


def test_mutated_inputs_do_no_harm() -> None:
    counts = fuzz(inputs=200, seed=0)
    assert counts["failures"] == []
    assert counts["inputs"] == 200
    assert counts["read"] > 15, "some are still readable"
    assert counts["refused"] > 100, "and most are damaged"
    for harm in ("tracebacks", "hangs", "allocations", "executed", "programs"):
        assert counts[harm] == 0
