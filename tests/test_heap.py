"""Freed memory stays where the command line says so: no page of it is asked for again; the user has the last word."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from fastpure import heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

FAULTS = """
import resource
import torch
from fastpure.heap import keep_freed, policy

torch.set_num_threads(1)
kept = keep_freed() if %r else None
def work(n):
    for _ in range(n):
        a, b = (torch.ones(48 << 18) for _ in range(2))  # 48 MiB each
        del a, b
work(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept, policy() if kept is not None else "")
"""


def fresh(code: str, **environ: str) -> list[str]:
    """What a fresh interpreter prints in which nobody has told the allocator anything, in three parts."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env={**clean, **environ}, capture_output=True, text=True, check=True)
    return result.stdout.strip().split(" ", 2)


def faults(keep: bool, **environ: str) -> list[str]:
    """[page faults, bytes kept, policy]."""
    return fresh(FAULTS % keep, **environ)


def test_what_was_freed_is_used_again_without_a_page_from_the_system():
    without, with_it = faults(False), faults(True)
    # 480 MiB in pages of at most 2 MiB.
    assert int(without[0]) >= 240
    assert int(with_it[0]) < 0.05 * int(without[0])
    assert 0 < int(with_it[1]) <= heap.MOST_KEPT
    assert with_it[2].endswith("are kept (set by this program)")


@pytest.mark.parametrize(
    "told",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
)
def test_what_the_user_said_stays(told):
    count, kept, said = faults(True, **told)
    assert int(count) >= 240
    assert (kept, said) == ("0", "set by the user")


def test_many_processes_share_what_may_be_kept():
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    code = "from fastpure.heap import keep_freed; print(keep_freed(%d))"
    (few,) = fresh(code % 20)
    assert 0 < int(few) <= heap.SHARE * memory / 20
    assert fresh(code % 10**6) == ["0"], "less than a few blocks helps nobody"


@pytest.mark.parametrize(
    ("refused", "threshold"), [((), 1 << 28), ((1 << 28,), 1 << 25), ((1 << 28, 1 << 25), None)]
)
def test_an_older_library_is_told_all_or_nothing(refused, threshold):
    """glibc before 2.35 refuses thresholds above 32 MiB; the other values alone make it map every larger block."""
    said = {}

    def mallopt(name, value):
        if value in refused:
            return 0
        said[name] = value
        return 1

    assert heap._told(mallopt, 1 << 30) == (threshold is not None)
    expected = {heap.M_MMAP_THRESHOLD: threshold, heap.M_TRIM_THRESHOLD: 1 << 30, heap.M_TOP_PAD: 1 << 29}
    assert said == (expected if threshold else {})


@pytest.mark.parametrize(("text", "limited"), [("4294967296\n", True), ("max\n", False), (None, False)])
def test_a_container_counts_with_its_own_memory(tmp_path, monkeypatch, text, limited):
    monkeypatch.setattr(heap, "CGROUP_LIMIT", tmp_path / "memory.max")
    if text is not None:
        (tmp_path / "memory.max").write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert heap._memory() == (min(machine, 4 << 30) if limited else machine)


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_elsewhere_than_on_linux_nothing_is_asked(monkeypatch, system):
    monkeypatch.setattr(heap, "_kept", None)
    monkeypatch.setattr(heap.sys, "platform", system)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: pytest.fail("a library was opened"))
    assert heap.keep_freed() == 0
    assert heap.policy() in ("the system's default", "set by the user")
