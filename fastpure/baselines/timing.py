"""Timing as ratios: the cases take turns in one process, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


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
