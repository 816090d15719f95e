"""The charts of a page: swept settings, the attack's loss, confidence along the reverse process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np
import torch
from torch import Tensor

from ..purify import Defense
from .data import Entry
from .pictures import states_of
from .svg import Series, floor_percent, key, line_chart
from .sweeps import Sweep


@final
@dataclass(frozen=True)
class Chart:
    """A chart with its title, caption and legend, (key as SVG, name) each."""

    title: str
    svg: str
    caption: str
    legend: tuple[tuple[str, str], ...]


@final
@dataclass(frozen=True, eq=False)
class Walk:
    """Confidence of the classifier along one run's purification, means over ``n`` images.

    ``times`` are the diffusion times of the states, empty where they do not fall; ``top`` and ``true`` are the
    probabilities of the most probable and of the true class, per input.
    """

    entry: Entry
    n: int
    times: tuple[float, ...]
    top: dict[str, tuple[float, ...]]
    true: dict[str, tuple[float, ...]]


def sweep_chart(sweep: Sweep) -> Chart:
    """Clean and robust accuracy against a setting, with Wilson intervals over images."""
    series = []
    corrupted = all(entry.corrupted for curve in sweep.curves for _, entry in curve.points if entry.attacked)
    name = "corrupted" if corrupted else "robust"
    attacked = any(entry.attacked for curve in sweep.curves for _, entry in curve.points)
    for style, curve in enumerate(sweep.curves):
        for which in (name, "clean"):
            points = [
                (x, entry.summary.clean if which == "clean" else entry.summary.robust)
                for x, entry in curve.points
            ]
            known = [(x, interval) for x, interval in points if interval is not None]
            if known:
                label = f"{which}, {curve.label}" if curve.label else which
                x = tuple(x for x, _ in known)
                y, low, high = (
                    tuple(getattr(interval, part) for _, interval in known)
                    for part in ("estimate", "low", "high")
                )
                series.append(Series(label, x, y, low, high, style, which == "clean" and attacked))
    numbers = sorted({int(entry.key) for curve in sweep.curves for _, entry in curve.points})
    title = f"Accuracy against {sweep.title}"
    svg = line_chart(
        series,
        description=_told(title, series, True),
        x_label=sweep.title,
        y_label="accuracy, %",
        percent=True,
    )
    return Chart(
        title,
        svg,
        f"95 % Wilson intervals over images. Runs {_listed(numbers)}.{_cut(series)}",
        _legend(series),
    )


def trace_charts(entries: Sequence[Entry]) -> list[Chart]:
    """The attack's loss at its iterates, a chart per kind of loss: a curve still rising was cut off too early."""
    groups: dict[str, list[tuple[Entry, np.ndarray]]] = {}
    for entry in entries:
        if not entry.attacked or entry.corrupted:
            continue
        traces = entry.run.traces().astype(np.float64)
        if traces.shape[1] >= 2 and np.isfinite(traces).any():
            settings = entry.identity["attack"]["settings"]
            kind = (
                settings["loss"]
                if isinstance(settings.get("loss"), str)
                else entry.identity["attack"]["name"]
            )
            groups.setdefault(str(kind), []).append((entry, traces))
    charts = []
    for kind, members in groups.items():
        series = []
        for entry, traces in members:
            mean = _finite_mean(traces)
            x = tuple(float(i) for i in range(1, len(mean) + 1))
            series.append(Series(f"{entry.key}: {entry.name}", x, tuple(mean), style=int(entry.key) - 1))
        title = f"Loss of the attack ({kind})"
        svg = line_chart(
            series,
            description=_told(title, series, False),
            x_label="iteration",
            y_label="mean loss",
            marks=max(len(one.x) for one in series) <= 12,
        )
        caption = (
            "Mean over images as the attack saw it. A loss that still rises at the end was cut off too early."
        )
        charts.append(Chart(title, svg, caption, _legend(series)))
    return charts


def walk(entry: Entry, defense: Defense, n: int, clean: bool = True) -> Walk:
    """The classifier's confidence at every state of the reverse process, for the first ``n`` images of a run.

    ``clean``: on the originals as well, where there are adversarial images.
    """
    positions = entry.run.positions[:n].tolist()
    labels = torch.from_numpy(entry.run.labels[:n])
    rows = defense.purifier.method.table().rows
    top: dict[str, tuple[float, ...]] = {}
    true: dict[str, tuple[float, ...]] = {}
    times: tuple[float, ...] = ()
    for which in ("adversarial", "clean")[not entry.attacked : 2 if clean or not entry.attacked else 1]:
        states = states_of(entry, defense, which, positions)
        kept, times = _reverse_part(states, [(row.t, row.forward) for row in rows])
        with torch.no_grad():
            found = [defense.classify(state).softmax(1).cpu() for state in kept]
        top[which] = tuple(float(p.amax(1).mean()) for p in found)
        true[which] = tuple(float(p.gather(1, labels[:, None]).mean()) for p in found)
    return Walk(entry, len(positions), times, top, true)


def walk_charts(walks: Sequence[Walk]) -> list[Chart]:
    """Charts of confidence in the most probable and in the true class, attacked images solid, originals hollow."""
    timed = all(one.times for one in walks)
    label = "diffusion time t (purification runs to the right)" if timed else "share of the steps taken, %"
    charts = []
    for kind, title in (
        ("top", "Confidence in the most probable class"),
        ("true", "Confidence in the true class"),
    ):
        series = []
        for one in walks:
            for which, values in getattr(one, kind).items():
                x = (
                    one.times
                    if timed
                    else tuple(100 * i / max(len(values) - 1, 1) for i in range(len(values)))
                )
                name = "corrupted" if which == "adversarial" and one.entry.corrupted else which
                text = f"{one.entry.key}: {one.entry.name}, {name} images"
                series.append(
                    Series(
                        text,
                        x,
                        values,
                        style=int(one.entry.key) - 1,
                        hollow=which == "clean" and one.entry.attacked,
                    )
                )
        svg = line_chart(
            series,
            description=_told(title, series, True),
            x_label=label,
            y_label="confidence, %",
            percent=True,
            backwards=timed,
            marks=False,
        )
        counts = _listed(sorted({one.n for one in walks}))
        about = "first evaluation draw; originals are drawn once per defence"
        caption = f"Mean over the first {counts} images, {about}.{_cut(series)}"
        charts.append(Chart(title, svg, caption, _legend(series)))
    return charts


def _reverse_part(states: Tensor, rows: Sequence[tuple[float, bool]]) -> tuple[Tensor, tuple[float, ...]]:
    """The states from the end of the diffusion on, and their times where these fall steadily to 0."""
    skipped = 0
    while skipped < len(rows) and rows[skipped][1]:
        skipped += 1
    times = (*(t for t, _ in rows[skipped:]), 0.0)
    falling = all(a > b for a, b in pairwise(times))
    if len(states) != len(rows) + 1 or any(forward for _, forward in rows[skipped:]):
        return states, ()
    return states[skipped:], times if falling else ()


def _finite_mean(traces: np.ndarray) -> np.ndarray:
    counts = np.isfinite(traces).sum(0)
    sums = np.where(np.isfinite(traces), traces, 0.0).sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def _legend(series: Sequence[Series]) -> tuple[tuple[str, str], ...]:
    return tuple((key(one.style, one.hollow), one.name) for one in series)


def _told(title: str, series: Sequence[Series], percent: bool) -> str:
    """The chart in words: where each line begins and ends."""
    parts = []
    for one in series:
        known = [(x, y) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
        if known:
            ends = [f"{100 * y:.1f} %" if percent else f"{y:.3g}" for _, y in (known[0], known[-1])]
            parts.append(f"{one.name} from {ends[0]} at {known[0][0]:.4g} to {ends[1]} at {known[-1][0]:.4g}")
    return f"{title}. " + "; ".join(parts)


def _cut(series: Sequence[Series]) -> str:
    return " The axis does not begin at 0." if floor_percent(series) > 0 else ""


def _listed(numbers: Sequence[int]) -> str:
    """ "1, 3 and 4", "2 to 5 and 7"; ascending numbers."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    words = []
    for span in spans:
        words += [f"{span[0]} to {span[-1]}"] if len(span) > 2 else [str(number) for number in span]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
