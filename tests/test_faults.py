"""No kill and no full disk, at whatever I/O call, loses or damages anything or keeps the same command from ending."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.faults import JOBS, Job, every_fault, fault_counts, memory_folder
from tests.thirds import stride

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads do not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_every_kill_and_full_disk(name):
    step, first = tried = stride()
    counts = fault_counts((name,), say=lambda text: print(text, file=sys.stderr), tried=tried)[name]
    print(f"one of {step} calls, from number {first + 1} on", file=sys.stderr)
    assert counts.pop("kills") >= 6 // step
    assert counts.pop("full disks") >= 5 // step
    assert counts == dict.fromkeys(counts, 0)


def careless(folder: Path) -> None:
    """Refuses what its own kill left, and writes under the final name."""
    if (folder / "part").exists():
        raise FileExistsError("part")
    (folder / "part").touch()
    with (folder / "result").open("w") as file:
        file.write("half")
        file.flush()
        os.fsync(file.fileno())
        file.write(" and half")
    (folder / "part").unlink()


def test_a_careless_command_is_caught():
    def content(folder: Path) -> dict[str, str]:
        found = {path.name: path.read_text() for path in folder.iterdir()}
        if found.get("result") == "half":
            raise ValueError("half written")
        return found

    with memory_folder() as folder:
        thirds = [every_fault(Job(careless, content), folder / f"{k}", tried=(3, k)) for k in range(3)]
        counts = every_fault(Job(careless, content), folder / "trials")
    assert all(sum(third[name] for third in thirds) == count for name, count in counts.items())
    assert counts["kills"] == 5
    assert counts["refused"] > 0
    assert counts["damaged"] > 0
    assert counts["tracebacks"] > 0
