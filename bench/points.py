"""What is known of finished rows: numbers that outlive their run files, kept as JSON beside the tables.

Long tables are measured on more than one day and machine. Whoever measures more adds to what is known; nothing that
was measured is lost with a folder of runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fastpure as fp
from fastpure.evaluate import Run
from fastpure.evaluate.statistics import Comparison, compare_values
from fastpure.files import replace_file
from fastpure.intervals import Interval
from fastpure.report.data import finding
from fastpure.report.rebuild import network_calls

HEADER = (
    "| defence | attack | decided on | images | clean % | robust % | on fresh noise % | "
    "gradients per image | network calls | hours | warnings |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)
"""Of the table whose lines are `Point.line`."""


@dataclass(frozen=True)
class Point:
    """One attack on one defence.

    Fields:
        defence, attack: by name.
        protocol: who decided.
        clean, robust, transfer: accuracies over images.
        gradients: of the defence, per image on average; None where the attack does not say.
        calls: network calls of the whole run, None where nobody knows.
        hours: of all processes.
        warnings: names of findings that speak against the numbers.
        values: how far each image counted as correct under the attack; empty where that was not kept.
    """

    defence: str
    attack: str
    protocol: str
    clean: Interval
    robust: Interval | None
    transfer: Interval | None
    gradients: float | None
    calls: int | None
    hours: float
    warnings: tuple[str, ...]
    values: tuple[float, ...] = ()

    @staticmethod
    def of(defence: str, attack: str, run: Run) -> Point:
        """Of a finished run."""
        report = fp.Report.of(run)
        judged = sum(run.predicted(which).size for which in ("clean", "adversarial", "transfer"))
        spent = gradients(run)
        total = None if spent is None else spent * len(run.positions)
        return Point(
            defence,
            attack,
            str(run.protocol),
            report.clean,
            report.robust,
            report.transfer,
            spent,
            network_calls(run.identity, run.protocol, judged, len(run.positions), total),
            sum(report.seconds.values()) / 3600,
            tuple(finding.name for finding in report.warnings),
            () if report.robust is None else tuple(map(float, run.values("adversarial"))),
        )

    @property
    def line(self) -> str:
        """A line of the table under `HEADER`."""
        numbers = [str(value).replace(" %", "") if value else "" for value in self._accuracies]
        spent = "" if self.gradients is None else f"{self.gradients:.0f}"
        calls = "" if self.calls is None else f"{self.calls / 1e3:,.0f}k"
        cells = (self.defence, self.attack, self.protocol, self.clean.n, *numbers, spent, calls)
        return f"| {' | '.join(map(str, cells))} | {self.hours:.2f} | {'; '.join(self.warnings)} |"

    @property
    def _accuracies(self) -> tuple[Interval | None, ...]:
        return self.clean, self.robust, self.transfer


def gradients(run: Run) -> float | None:
    """Gradients of the defence that the attack spent per image, on average; None where it does not say."""
    spent = run.spent
    return float(spent.mean()) if len(spent) and bool(np.isfinite(spent).all()) else None


def warned(points: Collection[Point]) -> str:
    """A sentence with what speaks against these numbers; "" where nothing does."""
    names = Counter(finding(name) for point in points for name in set(point.warnings))
    found = ", ".join(f"{name} ({count} of {len(points)} runs)" for name, count in sorted(names.items()))
    return f"Warnings: {found}." if found else ""


@dataclass
class Known:
    """All that is known of one data set.

    Fields:
        setting: what all points share and a row's name does not say; nothing before there is a point.
        points: a row's file name -> what came out.
        pairs: "defence | attack | reference" -> difference of the attack from the reference on the same images, the
            ends of its interval, and p. Kept by itself, because points of before have no values.
        relatives: defence -> how well its relatives know its gradient, see `bench.relatives`.
    """

    setting: dict[str, Any] = field(default_factory=dict)
    points: dict[str, Point] = field(default_factory=dict)
    pairs: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    relatives: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def pair(self, reference: Point, other: Point) -> None:
        """Compare two points of one defence, if both know their images' values."""
        if reference.values and other.values:
            found: Comparison = compare_values(np.array(reference.values), np.array(other.values))
            key = paired(other.defence, other.attack, reference.attack)
            self.pairs[key] = (found.difference, found.low, found.high, found.p_value)


def paired(defence: str, attack: str, reference: str) -> str:
    """The key of a comparison in `Known.pairs`."""
    return f"{defence} | {attack} | {reference}"


def load(path: Path) -> dict[str, Known]:
    """Data set -> what is known of it; nothing where there is no file yet."""
    if not path.exists():
        return {}
    text = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Known(
            known["setting"],
            {file: _point(one) for file, one in known["points"].items()},
            {key: tuple(values) for key, values in known["pairs"].items()},
            known["relatives"],
        )
        for name, known in text.items()
    }


def save(known: dict[str, Known], path: Path) -> Path:
    """Write ``known`` for `load`, a point a line."""
    parts = []
    for name, one in sorted(known.items()):
        fields = [f'"setting": {json.dumps(one.setting)}']
        fields += (
            f"{json.dumps(part)}: {_lines({key: _plain(value) for key, value in values.items()})}"
            for part, values in (("points", one.points), ("pairs", one.pairs), ("relatives", one.relatives))
        )
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n}")
    return replace_file(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Point) else value


def _lines(values: dict[str, Any]) -> str:
    return (
        "{\n"
        + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        + "\n}"
    )


def _point(fields: dict[str, Any]) -> Point:
    accuracies = {
        name: None if fields[name] is None else Interval(**fields[name])
        for name in ("clean", "robust", "transfer")
    }
    return Point(
        **{**fields, **accuracies, "warnings": tuple(fields["warnings"]), "values": tuple(fields["values"])}
    )
