"""Memory that glibc's allocator keeps for the process instead of giving it back to the system at every free.

A network's activations are blocks of megabytes. By default those of more than 32 MiB are mapped when they are made and
unmapped when they are freed, and the system fills every page with zeros before it can be used again: a sixth to a
third of the time of a gradient on the host (``bench.bench_heap``).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of ``mallopt`` (malloc.h)."""

LARGEST_BLOCK = 1 << 28
"""Larger blocks are mapped and unmapped as before: holes of their size would be dear."""

LEAST_KEPT, MOST_KEPT, SHARE = 1 << 26, (1 << 31) - 1, 0.1
"""Bytes that are kept at least, or nothing changes, and at most, an ``int`` to ``mallopt``; and the share of the
machine's memory."""


def user_chose(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the user told the allocator something; then it stays that way."""
    return any(name.startswith("MALLOC_") and name.endswith("_") for name in environ) or (
        "glibc.malloc" in environ.get("GLIBC_TUNABLES", "")
    )


@functools.cache
def keep_freed(processes: int = 1) -> int:
    """Keep freed memory for what is allocated next, from now on; returns how many bytes at most.

    0 where the user chose otherwise (`MALLOC_..._`, `GLIBC_TUNABLES`), and where the C library is not glibc. It holds
    for the whole process: a matter of programs, not of libraries.

    Args:
        processes: that do so on this machine.
    """
    if user_chose():
        return 0
    library = ctypes.CDLL(None)
    # musl has a mallopt that does nothing.
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kept = min(MOST_KEPT, int(SHARE * memory / processes))
    if kept < LEAST_KEPT:
        return 0
    told = (
        (M_MMAP_THRESHOLD, min(LARGEST_BLOCK, kept)),
        (M_TRIM_THRESHOLD, kept),
        # What stays when more than that is free at the end of the heap.
        (M_TOP_PAD, kept // 2),
    )
    done = [library.mallopt(name, value) for name, value in told]
    return kept if all(done) else 0


def policy() -> str:
    """What becomes of freed memory, in words."""
    if user_chose():
        return "set by the user"
    kept = keep_freed()
    return (
        f"up to {kept / 2**30:.1f} GiB are kept (set by the command line)" if kept else "the system's default"
    )
