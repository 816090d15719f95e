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

from ..evaluate.identity import canonical
from ..intervals import Interval, wilson
from ..purify import Target
from .charts import N_STYLES, Chart, Series, cut, listed, warned
from .data import Entry
from .pictures import states_of
from .sweeps import Curve, Sweep

LOSSES = {
    "ce": ("cross-entropy", "mean loss, nats"),
    "margin": ("margin of the logits", "mean loss"),
    "dlr": ("difference-of-logits ratio", "mean loss"),
    "dlr-targeted": ("difference-of-logits ratio to a target", "mean loss"),
}
"""Loss of an attack -> what it is called and what stands at its axis; others have the attack's name."""

WALKS = {
    "top": ("Confidence in the most probable class", "confidence-most-probable-class"),
    "true": ("Confidence in the true class", "confidence-true-class"),
    "right": ("Images classified right along the reverse process", "classified-right"),
}
"""What is followed along the reverse process -> its title and the name of its chart."""


GREY = 6
"""Colour of clean accuracy where it is that of several curves."""

MOST_INTERVALS = 4
"""Lines along the reverse process that have an interval at every state: those of more could not be told apart."""


@final
@dataclass(frozen=True, eq=False)
class Walk:
    """Confidence of the classifier along one run's purification, means over ``n`` images.

    ``times`` are the diffusion times of the states, empty where they do not fall; ``top`` and ``true`` are the
    probabilities of the most probable and of the true class, per input, and ``right`` counts the images whose most
    probable class is the true one.
    """

    entry: Entry
    n: int
    times: tuple[float, ...]
    top: dict[str, tuple[float, ...]]
    true: dict[str, tuple[float, ...]]
    right: dict[str, tuple[int, ...]]


def sweep_chart(sweep: Sweep) -> Chart:
    """Clean and robust accuracy against a setting, with Wilson intervals over images; a clean curve per defence."""
    series = []
    corrupted = all(entry.corrupted for curve in sweep.curves for _, entry in curve.points if entry.attacked)
    name = "corrupted" if corrupted else "robust"
    attacked = any(entry.attacked for curve in sweep.curves for _, entry in curve.points)
    for style, curve in enumerate(sweep.curves):
        points = [(x, entry.summary.robust) for x, entry in curve.points]
        series += _accuracies(f"{name}, {curve.label}" if curve.label else name, points, style, False)
    for label, style, originals in _clean_curves(sweep.curves):
        points = [(x, entry.summary.clean) for x, entry in originals]
        series += _accuracies(f"clean, {label}" if label else "clean", points, style, attacked)
    shown = {int(entry.key): entry for curve in sweep.curves for _, entry in curve.points}
    runs = tuple(shown[number] for number in sorted(shown))
    return Chart(
        f"accuracy-against-{sweep.setting}",
        f"Accuracy against {sweep.title}",
        f"95 % Wilson intervals over images.{cut(series)}",
        runs,
        tuple(series),
        x_label=sweep.axis,
        y_label="accuracy, %",
        percent=True,
        warnings=warned(runs),
        counts=sweep.counts,
    )


def _accuracies(
    label: str, points: Sequence[tuple[float, Interval | None]], style: int, hollow: bool
) -> list[Series]:
    """A line through those that are known; none where none is."""
    known = [(x, interval) for x, interval in points if interval is not None]
    if not known:
        return []
    y, low, high = (
        tuple(getattr(interval, part) for _, interval in known) for part in ("estimate", "low", "high")
    )
    return [Series(label, tuple(x for x, _ in known), y, low, high, style, hollow)]


def _clean_curves(curves: Sequence[Curve]) -> list[tuple[str, int, list[tuple[float, Entry]]]]:
    """(label, style, points) of clean accuracy: curves of the same defences on the same images have one together.

    Under several attacks clean accuracy is the same number; its line then has a colour of its own.
    """
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        asked = [
            (x, canonical([e.identity["defense"], e.identity["data"]["checksum"], e.run.protocol.hash]))
            for x, e in curve.points
        ]
        alone = {told for _, told in asked}  # one where an attack's setting is swept: x does not matter then
        groups.setdefault(canonical(sorted(alone) if len(alone) == 1 else asked), []).append(curve)
    texts = [group[0].points[0][1].defense_text for group in groups.values()]
    found, merged = [], 0
    for group, text in zip(groups.values(), texts, strict=True):
        first = group[0].points[0][1]
        points = {x: entry for curve in reversed(group) for x, entry in curve.points}
        if len(group) == 1:
            label, style = group[0].label, list(curves).index(group[0])
        else:
            settings = first.defense_settings if texts.count(text) > 1 else ""
            label = ", ".join(filter(None, (text, settings))) if len(groups) > 1 else ""
            style = GREY + N_STYLES * merged
            merged += 1
        found.append((label, style, sorted(points.items(), key=lambda item: item[0])))
    return found


def trace_charts(entries: Sequence[Entry]) -> list[Chart]:
    """The attacks' losses at their iterates, a chart per loss: a curve still rising was cut off too early.

    The same loss of several attacks is drawn in one chart, and all of them have the same axis of iterations. What
    attacks with different losses have in common is drawn beside it: the accuracy on their own draws.
    """
    groups: dict[str, list[tuple[Entry, np.ndarray]]] = {}
    for entry in entries:
        if not entry.attacked or entry.corrupted:
            continue
        traces = entry.run.traces().astype(np.float64)
        if traces.shape[1] >= 2 and np.isfinite(traces).any():
            groups.setdefault(entry.loss, []).append((entry, traces))
    charts = []
    longest = max((traces.shape[1] for members in groups.values() for _, traces in members), default=2)
    for kind, members in groups.items():
        series = []
        for entry, traces in members:
            mean = _finite_mean(traces)
            x = tuple(float(i) for i in range(1, len(mean) + 1))
            series.append(Series(entry.name, x, tuple(mean), style=int(entry.key) - 1, key=entry.key))
        other = (
            " Other losses are other quantities, on the same axis of iterations." if len(groups) > 1 else ""
        )
        chart = Chart(
            f"attack-loss-{kind}",
            f"Loss of the attack: {LOSSES.get(kind, (kind,))[0]}",
            "Mean over images as the attack saw it. A loss that still rises at the end was cut off too early."
            f"{other}",
            tuple(entry for entry, _ in members),
            tuple(series),
            x_label="iteration",
            y_label=LOSSES.get(kind, (kind, "mean loss"))[1],
            marks=longest <= 12,
            warnings=warned([entry for entry, _ in members]),
            counts=True,
            x_range=(1.0, float(longest)),
        )
        charts.append(chart)
    shown = [entry for members in groups.values() for entry, _ in members]
    return [*_course_chart(sorted(shown, key=lambda entry: int(entry.key))), *charts]


def _course_chart(entries: Sequence[Entry]) -> list[Chart]:
    """Accuracy on the attacks' own draws against the gradients spent; none where no run has both."""
    series, shown, parts = [], [], []
    for entry in entries:
        correct, spent = (array.astype(np.float64) for array in entry.run.progress())
        looked = np.flatnonzero((np.isfinite(correct) & np.isfinite(spent)).any(1))
        if not len(looked) or correct.shape[1] < 2:
            continue
        there = len(correct)
        correct, spent = _held(correct[looked]), _held(spent[looked], 0.0)
        n, last = len(correct), correct.shape[1] - 1
        ends = [
            wilson(float(column.sum()), n) if i in (0, last) else None for i, column in enumerate(correct.T)
        ]
        low, high = (
            tuple(math.nan if end is None else getattr(end, part) for end in ends) for part in ("low", "high")
        )
        x, y = tuple(spent.mean(0).tolist()), tuple(correct.mean(0).tolist())
        series.append(Series(entry.name, x, y, low, high, style=int(entry.key) - 1, key=entry.key))
        shown.append(entry)
        parts.append((entry.calls_per_gradient, f"{n} of {there} images"))
    if not shown:
        return []
    calls = sorted({count for count, _ in parts if count is not None})
    images = " and ".join(dict.fromkeys(text for _, text in parts))
    priced = f" A gradient is {listed(calls)} network calls." if calls else ""
    caption = (
        f"Share of the attack's own draws that were right, to which it adapted: fresh draws decide. Means over the "
        f"images attacked ({images}), 95 % Wilson intervals at both ends; an image given up keeps its last value."
        f"{priced}"
    )
    return [
        Chart(
            "attack-accuracy",
            "Accuracy the attack saw",
            f"{caption}{cut(series)}",
            tuple(shown),
            tuple(series),
            x_label="gradients spent per image (a forward pass is a half)",
            y_label="accuracy on its draws, %",
            percent=True,
            marks=max(len(one.x) for one in series) <= 12,
            warnings=warned(shown),
            counts=True,
        )
    ]


def _held(rows: np.ndarray, before: float | None = None) -> np.ndarray:
    """Each row with its gaps filled by the value before, and those at its beginning by the first, or by ``before``."""
    known = np.isfinite(rows)
    last = np.maximum.accumulate(np.where(known, np.arange(rows.shape[1]), -1), 1)
    first = known.argmax(1)[:, None]
    held = np.take_along_axis(rows, np.where(last < 0, first, last), 1)
    return held if before is None else np.where(last < 0, before, held)


def walk(entry: Entry, target: Target, n: int, clean: bool = True) -> Walk:
    """The classifier's confidence at every state of the reverse process, for the first ``n`` images of a run.

    ``clean``: on the originals as well, where there are adversarial images.
    """
    positions = entry.run.positions[:n].tolist()
    labels, ids = (torch.from_numpy(found[:n]) for found in (entry.run.labels, entry.run.sample_ids))
    rows = target.method.table().rows
    top: dict[str, tuple[float, ...]] = {}
    true: dict[str, tuple[float, ...]] = {}
    right: dict[str, tuple[int, ...]] = {}
    times: tuple[float, ...] = ()
    for which in ("adversarial", "clean")[not entry.attacked : 2 if clean or not entry.attacked else 1]:
        states = states_of(entry, target, which, positions)
        kept, times = _reverse_part(states, [(row.t, row.forward) for row in rows])
        with torch.no_grad():
            found = [target.classify(state, ids.to(state.device)).softmax(1).cpu() for state in kept]
        top[which] = tuple(float(p.amax(1).mean()) for p in found)
        true[which] = tuple(float(p.gather(1, labels[:, None]).mean()) for p in found)
        right[which] = tuple(int((p.argmax(1) == labels).sum()) for p in found)
    return Walk(entry, len(positions), times, top, true, right)


def walk_charts(walks: Sequence[Walk]) -> list[Chart]:
    """Confidence in the most probable and in the true class, and how many images are right; originals hollow."""
    timed = all(one.times for one in walks)
    counts = listed(sorted({one.n for one in walks}))
    about = f"over the first {counts} images, first evaluation draw; originals are drawn once per defence."
    n_lines, warnings = sum(len(one.top) for one in walks), warned([one.entry for one in walks])
    charts = []
    names = walk_names([one.entry for one in walks])
    for (kind, (title, _)), name in zip(WALKS.items(), names, strict=True):
        series = tuple(
            _walk_series(one, which, kind, timed, n_lines > MOST_INTERVALS)
            for one in walks
            for which in getattr(one, kind)
        )
        said = f"Mean {about}"
        if kind == "right":
            where = " at both ends" if n_lines > MOST_INTERVALS else ""
            said = f"Shares {about} 95 % Wilson intervals{where}."
        chart = Chart(
            name,
            title,
            f"{said}{cut(series)}",
            tuple(one.entry for one in walks),
            series,
            x_label="diffusion time t (purification runs to the right)"
            if timed
            else "share of the steps taken, %",
            y_label="images classified right, %" if kind == "right" else "confidence, %",
            percent=True,
            backwards=timed,
            marks=kind == "right" and n_lines <= MOST_INTERVALS,
            warnings=warnings,
        )
        charts.append(chart)
    return charts


def walk_names(entries: Sequence[Entry]) -> list[str]:
    """Names of the charts that `walk_charts` makes of these runs: with that of the run if there is one only."""
    if not entries:
        return []
    own = f"-{entries[0].name}" if len(entries) == 1 else ""
    return [name + own for _, name in WALKS.values()]


def _walk_series(one: Walk, which: str, kind: str, timed: bool, ends: bool) -> Series:
    """A line for one input of one walk; shares of right images with their intervals, ``ends``: at both ends only."""
    values = getattr(one, kind)[which]
    x = one.times if timed else tuple(100 * i / max(len(values) - 1, 1) for i in range(len(values)))
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    if kind == "right":
        found = [wilson(k, one.n) for k in values]
        values, low, high = (
            tuple(getattr(interval, part) for interval in found) for part in ("estimate", "low", "high")
        )
        if ends:
            low, high = (
                tuple(y if i in (0, len(values) - 1) else math.nan for i, y in enumerate(own))
                for own in (low, high)
            )
    seen = "corrupted" if which == "adversarial" and one.entry.corrupted else which
    return Series(
        f"{one.entry.name}, {seen} images",
        x,
        values,
        low,
        high,
        style=int(one.entry.key) - 1,
        hollow=which == "clean" and one.entry.attacked,
        key=one.entry.key,
    )


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
