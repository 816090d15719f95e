"""Peak memory of a call: what the allocator reports on a GPU, what the kernel reports on a CPU."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_megabytes(run: Callable[[], object], device: torch.device) -> float | None:
    """Memory ``run`` needs at its peak beyond what was in use before, in MB; None where nobody can tell.

    On a CPU this is resident memory, Linux only: freed memory is given back first, so that a call cannot hide
    in what an earlier one left behind.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - allocated) / 1e6
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _CLEAR.write_text("5")  # resets the high-water mark of this process
        before = _kilobytes("VmRSS")
    except (OSError, AttributeError, StopIteration):
        return None
    run()
    return max(0.0, (_kilobytes("VmHWM") - before) / 1e3)


def _kilobytes(name: str) -> float:
    lines = _STATUS.read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + ":")))
