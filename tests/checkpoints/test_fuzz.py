"""Hundreds of damaged and hostile weights and configurations: a sentence each, in time, in memory, nothing run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.checkpoints.fuzz import fuzz_readers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason=f"no peak of memory on {sys.platform}"
    ),
]


def test_the_fuzz_notices_faults():
    found = fuzz_readers(0, 0, "--faults")
    assert found == {"inputs": 7, "tracebacks": 4, "hangs": 1, "allocations": 2, "executed": 2}


@pytest.mark.parametrize("seed", [0, 1])
def test_no_reader_stumbles(seed):
    """``fuzz_readers`` makes the row of docs/guarantees.md."""
    found = fuzz_readers(600, seed)
    assert found == {"inputs": 600, "tracebacks": 0, "hangs": 0, "allocations": 0, "executed": 0}
