"""Tables of robustness: rows of (defence, attack), each a run file, and what several of them say together.

`bench.robustness_digits` and `bench.robustness_cifar10` say which rows; here they are run and written down. Several
processes may work on one folder: whoever comes to a row that another is busy with takes the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

import fastpure as fp
from fastpure.attacks.base import Attack
from fastpure.data import Dataset
from fastpure.errors import RunLocked
from fastpure.evaluate import Protocol, Run, across, worst_of
from fastpure.evaluate.statistics import Comparison, compare_values
from fastpure.evaluate.summary import accuracy

from .points import HEADER, Point

WORST = "worst of all, chosen image by image on other draws"
Makers = Mapping[str, Callable[[], nn.Module]]


@dataclass(frozen=True)
class Row:
    """One line of a table: a defence and an attack by name, the protocol that decides, ``n`` images of a ``split``.

    With a ``source`` nothing is attacked: the images found in that row's run are judged on this defence.
    """

    defence: str
    attack: str
    protocol: Protocol
    n: int
    split: str = "test"
    source: Row | None = None

    @property
    def file(self) -> str:
        words = f"{self.defence} {self.attack} {self.protocol.name}"
        plain = "-".join("".join(c if c.isalnum() or c == "." else " " for c in words).split())
        return f"{plain}-{'' if self.split == 'test' else f'{self.split}-'}{self.n}.sqlite"


@dataclass(frozen=True)
class Study:
    """Rows, and how to make what they name.

    Fields:
        defences, attacks: name -> maker; an attack may be None (nothing but clean accuracy).
        data: row -> its images.
        batch_size: images per block.
    """

    defences: Makers
    attacks: Mapping[str, Callable[[], Attack | None]]
    data: Callable[[Row], Dataset]
    batch_size: int


def run_rows(study: Study, rows: Iterable[Row], folder: Path) -> None:
    """Run what is not finished, one file per row; rows that another process is writing are left to it."""
    for row in rows:
        if row.source is not None and not finished([row.source], folder):
            print(f"{row.defence:<16} {row.attack:<20} waits for {row.source.file}", flush=True)
            continue
        try:
            report = fp.evaluate(
                study.defences[row.defence](),
                study.data(row),
                _attack(study, row, folder),
                row.protocol,
                folder / row.file,
                batch_size=study.batch_size,
                progress=False,
            )
        except RunLocked:
            print(f"{row.defence:<16} {row.attack:<20} is being run by another process", flush=True)
            continue
        spent = sum(report.seconds.values())
        print(
            f"{row.defence:<16} {row.attack:<20} clean {report.clean}  robust {report.robust}  {spent:.0f} s",
            flush=True,
        )


def _attack(study: Study, row: Row, folder: Path) -> Attack | None:
    if row.source is None:
        return study.attacks[row.attack]()
    with Run.open(folder / row.source.file) as run:
        return run.as_attack()


def finished(rows: Iterable[Row], folder: Path) -> dict[Row, Run]:
    """The rows whose run file is complete, with their runs."""
    found = {}
    for row in rows:
        if (folder / row.file).exists():
            run = Run.open(folder / row.file)
            if run.complete:
                found[row] = run
    return found


def lines(found: Mapping[Row, Run]) -> Iterator[str]:
    """The table, one line per finished run."""
    yield from HEADER
    for row, run in found.items():
        yield Point.of(row.defence, row.attack, run).line


def comparisons(
    found: Mapping[Row, Run], pairs: Iterable[tuple[str, str]], counts: Callable[[Row], bool]
) -> Iterator[str]:
    """Paired comparisons of two defences under the same attack, and under the worst of the rows that count (`worst`).

    The latter only where b was attacked with no more than a was, apart from what a has no part for (a gradient that
    leaves out guidance) or would be the same (images found on a itself).
    """
    yield "| attack | a | b | b - a, points | better / worse images | exact McNemar p |"
    yield "|---|---|---|---|---|---|"
    pairs = tuple(pairs)
    for attack in dict.fromkeys(row.attack for row in found):
        runs = {row.defence: run for row, run in found.items() if row.attack == attack}
        for a, b in pairs:
            if a in runs and b in runs:
                yield _comparison(attack, a, b, fp.compare(runs[a], runs[b]))
    for a, b in pairs:
        one, two = (worst(found, name, counts) for name in (a, b))
        if one is not None and two is not None and _attacks(found, b, counts) <= _attacks(found, a, counts):
            yield _comparison(WORST, a, b, compare_values(one, two))


def _comparison(attack: str, a: str, b: str, result: Comparison) -> str:
    return f"| {attack} | {a} | {b} | {points(result)} | {result.wins} / {result.losses} | {result.p_value:.2g} |"


def points(result: Comparison) -> str:
    """A difference with its interval, in points."""
    return f"{100 * result.difference:+.1f} [{100 * result.low:+.1f}, {100 * result.high:+.1f}]"


def _attacks(found: Mapping[Row, Run], defence: str, counts: Callable[[Row], bool]) -> set[str]:
    """Attacks of the rows that count; the defence's own images count as found on itself, detached ones as exact."""
    rows = [row for row in found if row.defence == defence and counts(row)]
    own = {row.attack for row in found if row.source is not None and row.source.defence == defence}
    return {row.attack.removesuffix(", detached") for row in rows} | own


def worst(found: Mapping[Row, Run], defence: str, counts: Callable[[Row], bool]) -> np.ndarray | None:
    """How far each image counts as correct under the worst row for it, float64 [n], see `worst_of`; None without."""
    runs = [run for row, run in found.items() if row.defence == defence and counts(row)]
    return worst_of(runs) if runs else None


def lowest(found: Mapping[Row, Run], defences: Iterable[str], counts: Callable[[Row], bool]) -> Iterator[str]:
    """Per defence what the rows that count leave of it: under the attack that found most, and image by image.

    The last column takes for each image the worst row, as an attacker who tries all would: chosen on some draws and
    judged on others, so that it does not fall with the number of rows alone.
    """
    yield f"| defence | clean % | lowest robust % | found by | rows | {WORST} % |"
    yield "|---|---|---|---|---|---|"
    for name in defences:
        runs = {row: run for row, run in found.items() if row.defence == name and counts(row)}
        values = {row: run.values("adversarial") for row, run in runs.items()}
        if values:
            row = min(values, key=lambda row: float(values[row].mean()))
            least = worst(found, name, counts)
            assert least is not None
            report = fp.Report.of(runs[row])
            cells = (name, report.clean, f"**{report.robust}**", row.attack, len(runs), accuracy(least))
            yield f"| {' | '.join(map(str, cells))} |".replace(" %", "")


def held(found: Mapping[Row, Run], attack: str, counts: Callable[[Row], bool]) -> Iterator[str]:
    """Per defence, whether ``attack`` was beaten: beside what it leaves, the lowest of the other rows that count."""
    yield f"| defence | {attack} % | lowest other % | found by | other - {attack}, points | p |"
    yield "|---|---|---|---|---|---|"
    for name in dict.fromkeys(row.defence for row in found):
        runs = {row: run for row, run in found.items() if row.defence == name and counts(row)}
        own = [run for row, run in runs.items() if row.attack == attack]
        others = {row: run for row, run in runs.items() if row.attack != attack}
        if own and others:
            row = min(others, key=lambda row: float(others[row].values("adversarial").mean()))
            robust = [fp.Report.of(run).robust for run in (own[0], others[row])]
            result = fp.compare(own[0], others[row])
            cells = (name, *robust, row.attack, points(result), f"{result.p_value:.2g}")
            yield f"| {' | '.join(map(str, cells))} |".replace(" %", "")


def alarms(found: Mapping[Row, Run]) -> Iterator[str]:
    """What the runs of one defence say about each other's attacks."""
    for name in dict.fromkeys(row.defence for row in found):
        for finding in across([run for row, run in found.items() if row.defence == name]):
            if finding.alarm:
                yield f"- {name}, {finding.explanation}"
