"""Timing as ratios: the cases take turns in one process, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Clock = Literal["wall", "cpu"]
"""Of the two the wall's time is what a user waits for; the processor's is what still counts on a machine with others on
it. With several threads the latter includes those that spin while they wait for each other."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one case over the repeats.

    Fields:
        seconds: by the clock on the wall.
        cpu_seconds: of processor time, all threads of this process together, turn by turn as ``seconds``.
    """

    name: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds)

    def by(self, clock: Clock) -> tuple[float, ...]:
        """The seconds by one of the two clocks."""
        return self.seconds if clock == "wall" else self.cpu_seconds


def interleave(
    cases: Mapping[str, Callable[[], object]],
    repeats: int = 5,
    warmup: int = 1,
    wait: Callable[[], None] = lambda: None,
    report: Callable[[int], None] = lambda done: None,
) -> list[Timing]:
    """Run every case ``repeats`` times in turn, after ``warmup`` unmeasured turns.

    ``wait`` is called before the clocks are read (a GPU works behind the program's back), ``report`` after each call
    with the number of calls done.
    """
    done = 0
    wall: dict[str, list[float]] = {name: [] for name in cases}
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warmup + repeats):
        for name, run in cases.items():
            wait()
            worked, begin = time.process_time(), time.perf_counter()
            run()
            wait()
            end, stopped = time.perf_counter(), time.process_time()
            done += 1
            report(done)
            if turn >= warmup:
                wall[name].append(end - begin)
                cpu[name].append(stopped - worked)
    return [Timing(name, tuple(wall[name]), tuple(cpu[name])) for name in cases]


def ratio(timings: list[Timing], name: str, reference: str, clock: Clock = "wall") -> float:
    """Median over the turns of seconds(name) / seconds(reference), turn by turn; NaN where a clock did not move."""
    by_name = {timing.name: timing.by(clock) for timing in timings}
    pairs = zip(by_name[name], by_name[reference], strict=True)
    return statistics.median(a / b if b else float("nan") for a, b in pairs)


def table(timings: list[Timing], reference: str, title: str, notes: Mapping[str, str] | None = None) -> str:
    """Aligned text: case, median seconds, spread, processor time, and the ratios of either to ``reference``."""
    notes = notes or {}
    head = f"{'case':<44}{'median s':>10}{'min':>9}{'max':>9}{'CPU s':>9}{'ratio':>8}{'by CPU':>8}"
    lines = [title, head]
    for timing in timings:
        relative, by_cpu = (ratio(timings, timing.name, reference, clock) for clock in ("wall", "cpu"))
        lines.append(
            f"{timing.name:<44}{timing.median:>10.4f}{min(timing.seconds):>9.4f}{max(timing.seconds):>9.4f}"
            f"{timing.cpu_median:>9.4f}{relative:>8.2f}{by_cpu:>8.2f}  {notes.get(timing.name, '')}".rstrip()
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
