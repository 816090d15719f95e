"""The results file of `python -m bench.cpu`: every ratio and every share beside what it should be."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.cpu_cases import CHANNELS_LAST, COMPILED, NCHW, OURS, WORKLOADS
from fastpure.baselines import Rate, Timing, ratio
from fastpure.baselines.processor import fastest, share

Row = Mapping[str, Any]
RATIO_GOALS = {
    ("official", "gradient", "fp32"): 1.2,
    ("official", "gradient", "bf16"): 1.6,
    ("small", "gradient", "fp32"): 1.25,
    ("small", "gradient", "bf16"): 1.8,
    ("digits", "gradient", "fp32"): 1.5,
    **{(name, "purification", "fp32"): 1.2 for name in WORKLOADS},
    **{(name, "purification", "bf16"): 1.5 for name in WORKLOADS},
}
"""Times as fast as the compiled loop that keeps everything."""

SHARE_GOALS = {
    ("official", "gradient", "fp32"): 0.75,
    ("official", "gradient", "bf16"): 0.40,
    ("small", "gradient", "fp32"): 0.60,
    ("small", "gradient", "bf16"): 0.25,
}
"""Of the processor's product rate."""


class Measured:
    """The measured row of a case."""

    def __init__(self, row: Row) -> None:
        self.key = (row["workload"], row["kind"], row["precision"])
        self.threads, self.flops, self.failed = row["threads"], row["flops"], row["failed"]
        self.timings = [_timing(one) for one in row["cases"].values()]
        self.peaks = {name: one["peak_mb"] for name, one in row["cases"].items()}
        self.rates = [
            Rate(one["name"], row["precision"], one["flops"], _timing(one["timing"]))
            for one in row["products"]
        ]
        self.date = row["date"]

    def timing(self, name: str) -> Timing:
        return next(timing for timing in self.timings if timing.name == name)

    def compiled(self) -> str | None:
        """The faster of the compiled loops, by the clock."""
        names = [timing.name for timing in self.timings if timing.name.startswith(COMPILED)]
        return min(names, key=lambda name: ratio(self.timings, name, OURS), default=None)

    def times(self, peer: str | None) -> tuple[float, float] | None:
        """How many times as fast as ``peer`` ours is, by the clock and by processor time."""
        if peer is None:
            return None
        return ratio(self.timings, peer, OURS), ratio(self.timings, peer, OURS, "cpu")

    def shares(self) -> tuple[float, float] | None:
        """Of the processor's rate, by the clock and by processor time."""
        ours, precision = self.timing(OURS), self.key[2]
        by_clock = share(ours, self.flops, self.rates, precision)
        by_cpu = share(ours, self.flops, self.rates, precision, "cpu")
        return None if by_clock is None or by_cpu is None else (by_clock, by_cpu)


def _timing(values: Mapping[str, Any]) -> Timing:
    return Timing(values["name"], tuple(values["seconds"]), tuple(values["cpu_seconds"]))


def report(plan: Sequence[Row], rows: Sequence[Row]) -> str:
    """The file for the cases of ``plan`` (their identities); of a case measured twice the later row counts."""
    latest, ended = {}, {}
    for row in rows:
        for case in plan:
            if all(row.get(key) == case[key] for key in case):
                key = (case["workload"], case["kind"], case["precision"])
                ended[key] = row.get("outcome", "")
                if "cases" in row:
                    latest[key] = Measured(row)
    keys = [(case["workload"], case["kind"], case["precision"]) for case in plan]
    found = [latest[key] for key in keys if key in latest]
    lines = [*_head(plan, found), "", *_rates(found)]
    for kind, title in (("gradient", "Exact gradient"), ("purification", "Purification")):
        chosen = [one for one in found if one.key[1] == kind]
        lines += ["", f"## {title}", "", *_ratios(chosen)] if chosen else []
    lines += ["", "## All cases", "", *_everything(found)]
    absent = [f"- {', '.join(key)}: {ended.get(key) or 'not measured'}" for key in keys if key not in latest]
    absent += [f"- {', '.join(one.key)}, {name}: {why}" for one in found for name, why in one.failed.items()]
    return "\n".join([*lines, *(["", "## Not measured", "", *absent] if absent else [])]) + "\n"


def _head(plan: Sequence[Row], found: Sequence[Measured]) -> Iterator[str]:
    case, turns = plan[0], {case["workload"]: case["repeats"] for case in plan}
    dates = sorted({one.date for one in found}) or ["-"]
    yield "# Speed on a processor"
    yield ""
    yield "Written by `python -m bench.cpu OUT --report bench/results/cpu.md`, which measures it anew on any machine."
    yield ""
    yield f"- Processor: {case['processor']}"
    yield f"- torch {case['torch']}; commit {case['commit']}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
    for name, workload in WORKLOADS.items():
        if any(one.key[0] == name for one in found):
            yield f"- {name}: {workload}; {turns[name]} turns"
    yield ""
    yield """Everybody has the same random weights, images and step table, and keeps everything that the backward pass
needs. The loops are a plain port of the network in torch's own modules, with frozen weights; the compiled one is the
channels_last loop under `torch.compile`. The calls of a case took turns in one process, after one turn that does not
count; seconds, ratios and shares are medians over the turns. CPU is the processor time of all threads: it counts where
others used the machine meanwhile. Peak memory is what a call needs beyond what was there before it."""


def _rates(found: Sequence[Measured]) -> Iterator[str]:
    yield "## What the processor can do"
    yield ""
    yield "GFLOP/s of two large products by torch, median (lowest to highest) over the cases; the rate is the faster's."
    yield ""
    yield "| threads | precision | matrix product | 3x3 convolution | the rate is |"
    yield "|---|---|---|---|---|"
    for threads in sorted({one.threads for one in found}):
        for precision in dict.fromkeys(one.key[2] for one in found):
            cases = [one for one in found if (one.threads, one.key[2]) == (threads, precision) and one.rates]
            if not cases:
                continue
            by_name: dict[str, list[float]] = {}
            for one in cases:
                for rate in one.rates:
                    by_name.setdefault(rate.name, []).append(rate.per_second() / 1e9)
            cells = [
                f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
                for values in (by_name["matrix product"], by_name["3x3 convolution"])
            ]
            best = max(by_name, key=lambda name: statistics.median(by_name[name]))
            yield f"| {threads} | {precision} | {cells[0]} | {cells[1]} | the {best} |"


def _goal(value: float, goal: float | None, percent: bool = False) -> str:
    if goal is None:
        return "-"
    return f"{100 * goal:.0f} %" * percent + f"{goal:g}" * (not percent) + ", missed" * (value < goal)


def _pair(values: tuple[float, float] | None) -> tuple[str, str]:
    return ("-", "-") if values is None else (f"{values[0]:.2f}", f"{values[1]:.2f}")


def _memory(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _ratios(found: Sequence[Measured]) -> Iterator[str]:
    yield """Times as fast as each peer, by the clock and by processor time; and of the processor's rate the share that
the arithmetic of the passes reaches: one pass per step for a purification, two for a gradient, nothing recomputed."""
    yield ""
    yield (
        "| workload | precision | seconds | CPU s | compiled | by CPU | goal | channels_last | by CPU | NCHW | by CPU "
        "| % of rate | by CPU | goal | product | peak MB: ours | compiled | channels_last |"
    )
    yield "|" + "---|" * 18
    for one in found:
        compiled, shares = one.compiled(), one.shares()
        times, ours = one.times(compiled), one.timing(OURS)
        rate = fastest(one.rates, one.key[2])
        cells = [one.key[0], one.key[2], f"{ours.median:.4g}", f"{ours.cpu_median:.4g}", *_pair(times)]
        cells.append("-" if times is None else _goal(times[0], RATIO_GOALS.get(one.key)))
        cells += [*_pair(one.times(CHANNELS_LAST)), *_pair(one.times(NCHW))]
        cells += ["-"] * 3 if shares is None else [f"{100 * value:.0f}" for value in shares]
        if shares is not None:
            cells.append(_goal(shares[0], SHARE_GOALS.get(one.key), percent=True))
        cells.append("-" if rate is None else rate.name)
        cells += [
            _memory(None if name is None else one.peaks[name]) for name in (OURS, compiled, CHANNELS_LAST)
        ]
        yield f"| {' | '.join(cells)} |"


def _everything(found: Sequence[Measured]) -> Iterator[str]:
    heads = "threads | case | median s | min | max | CPU s | times ours | by CPU | peak MB"
    yield f"| workload | what | precision | {heads} |"
    yield "|" + "---|" * 12
    for one in found:
        for timing in one.timings:
            times = [f"{ratio(one.timings, timing.name, OURS, clock):.2f}" for clock in ("wall", "cpu")]
            cells = [*one.key, str(one.threads), timing.name, f"{timing.median:.4g}"]
            cells += [f"{min(timing.seconds):.4g}", f"{max(timing.seconds):.4g}", f"{timing.cpu_median:.4g}"]
            yield f"| {' | '.join([*cells, *times, _memory(one.peaks[timing.name])])} |"
