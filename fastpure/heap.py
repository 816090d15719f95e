"""Memory that glibc's allocator keeps for the process instead of giving it back to the system at every free.

A network's activations are blocks of megabytes. By default those of more than 32 MiB are mapped when they are made and
unmapped when they are freed, and the system fills every page with zeros before it can be used again: a sixth to a
third of the time of a gradient on the host (``bench.bench_heap``).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of ``mallopt`` (malloc.h)."""

LARGEST_BLOCKS = (1 << 28, 1 << 25)
"""Larger blocks are mapped and unmapped as before: holes of their size would be dear. Old versions of glibc refuse the
first."""

LEAST_KEPT, MOST_KEPT, SHARE = 1 << 26, (1 << 31) - 1, 0.1
"""Bytes that are kept at least, or nothing changes, and at most, an ``int`` to ``mallopt``; and the share of the
machine's memory."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

_kept: int | None = None


def user_chose(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the user told the allocator something; then it stays that way."""
    return any(name.startswith("MALLOC_") and name.endswith("_") for name in environ) or (
        "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")
    )


def keep_freed(processes: int = 1) -> int:
    """Keep freed memory for what is allocated next, from now on; returns how many bytes at most.

    0 where the user chose otherwise (`MALLOC_..._`, `GLIBC_TUNABLES`), where the share of the memory is a few blocks
    only, and where the C library is not glibc or refuses. It holds for the whole process, and once said stays: a matter
    of programs, not of libraries.

    Args:
        processes: that do so on this machine.
    """
    global _kept
    if _kept is None and sys.platform != "linux":
        _kept = 0
    if _kept is None:
        library = ctypes.CDLL(None)
        # musl has a mallopt that does nothing.
        known = hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")
        kept = min(MOST_KEPT, int(SHARE * _memory() / processes))
        _kept = (
            kept if known and not user_chose() and kept >= LEAST_KEPT and _told(library.mallopt, kept) else 0
        )
    return _kept


def policy() -> str:
    """What becomes of freed memory, in words."""
    if user_chose():
        return "set by the user"
    return (
        f"up to {_kept / 2**30:.1f} GiB are kept (set by this program)" if _kept else "the system's default"
    )


def _told(mallopt: Callable[[int, int], int], kept: int) -> bool:
    # The other two alone would do harm: they end the threshold's own adaptation, which begins at 128 KiB.
    if not any(mallopt(M_MMAP_THRESHOLD, min(largest, kept)) for largest in LARGEST_BLOCKS):
        return False
    mallopt(M_TRIM_THRESHOLD, kept)
    # What stays when more than that is free at the end of the heap.
    mallopt(M_TOP_PAD, kept // 2)
    return True


def _memory() -> int:
    """Bytes of the machine, or of the container if it is allowed fewer."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return machine
