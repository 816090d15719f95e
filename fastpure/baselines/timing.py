"""Timing as ratios: the cases take turns in one process, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one case over the repeats."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleave(
    cases: Mapping[str, Callable[[], object]],
    repeats: int = 5,
    warmup: int = 1,
    wait: Callable[[], None] = lambda: None,
    report: Callable[[int], None] = lambda done: None,
) -> list[Timing]:
    """Run every case ``repeats`` times in turn, after ``warmup`` unmeasured turns.

    ``wait`` is called before the clock is read (a GPU works behind the program's back), ``report`` after each call
    with the number of calls done.
    """
    done = 0
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warmup + repeats):
        for name, run in cases.items():
            wait()
            begin = time.perf_counter()
            run()
            wait()
            done += 1
            report(done)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return [Timing(name, tuple(values)) for name, values in seconds.items()]


def ratio(timings: list[Timing], name: str, reference: str) -> float:
    """Median over the turns of seconds(name) / seconds(reference), turn by turn."""
    by_name = {timing.name: timing.seconds for timing in timings}
    pairs = zip(by_name[name], by_name[reference], strict=True)
    return statistics.median(a / b for a, b in pairs)


def table(timings: list[Timing], reference: str, title: str, notes: Mapping[str, str] | None = None) -> str:
    """Aligned text: case, median seconds, spread, and the ratio to ``reference``."""
    notes = notes or {}
    lines = [title, f"{'case':<44}{'median s':>10}{'min':>9}{'max':>9}{'ratio':>8}"]
    for timing in timings:
        relative = ratio(timings, timing.name, reference)
        lines.append(
            f"{timing.name:<44}{timing.median:>10.4f}{min(timing.seconds):>9.4f}{max(timing.seconds):>9.4f}"
            f"{relative:>8.2f}  {notes.get(timing.name, '')}".rstrip()
        )
    return "\n".join(lines)


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
