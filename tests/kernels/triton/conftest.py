"""The Triton kernels' tests run in Triton's interpreter, in a process of their own, or on a GPU.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/triton       anywhere
    python -m pytest tests/kernels/triton                          on a CUDA device; marked `gpu`

The variable is read when a kernel is decorated, so it must be set before anything is imported. Elsewhere nothing
here is collected, and pytest fails (exit status 5) where only this folder was asked for. In the interpreter a
missing Triton is an error, and so is a run in which every test was skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpure.kernels import triton_support
from tests.kernels.triton.cases import DEVICE, INTERPRETING

HERE = Path(__file__).parent
collect_ignore_glob = [] if DEVICE is not None else ["test_*.py"]
passed = 0

if INTERPRETING and triton_support.load().module is None:
    raise pytest.UsageError(f"TRITON_INTERPRET=1, but {triton_support.load().reason}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a device these are tests that need one."""
    if DEVICE == "cuda":
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.gpu)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count what ran to its end."""
    global passed
    passed += report.when == "call" and report.passed


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Nothing ran: that is no success."""
    if INTERPRETING and exitstatus == 0 and passed == 0 and not session.config.option.collectonly:
        session.exitstatus = 1
