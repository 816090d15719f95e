"""`reproduce`: an experiment into a folder: run files, a page, a table, figures. Killed anywhere, it continues."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from ..data import Dataset
from ..errors import ResumeError, mistake
from ..evaluate import Plan, Run, evaluate, plan
from ..evaluate.protocol import fresh
from ..evaluate.work import enter
from ..files import replace_file
from ..progress import Progress, on_terminal
from ..report import Options, report
from ..report.data import Entry, open_entries
from ..shown import Card, Grid, Shown
from .count import drawing_calls, job_calls
from .experiment import Experiment
from .made import PIECES, Kept, Made
from .parts import Job
from .settings import Setting, option
from .tables import as_json, markdown, missing_words

CLAIM = "experiment.json"
"""What the folder is for."""

RUNS, PAGE, TABLE, VALUES = "runs", "report.html", "table.md", "table.json"

Say = Callable[[str], None]


def reproduce(
    experiment: Experiment,
    setting: Setting,
    out: str | Path,
    *,
    batch_size: int = 64,
    progress: bool = True,
    say: Say = lambda text: None,
) -> list[Path]:
    """Run what is missing of ``experiment``, then write its page, table and figures; returns what was written.

    The same call continues after a kill, to the same content. Rows whose networks were not given are left out, and
    said to be.

    Args:
        out: the folder. Run files go to ``runs/`` in it; everything else is written anew each time.
        batch_size: images attacked together.
        progress: show each run's images, time left and accuracy so far on stderr.
        say: called with what is being done.

    Raises:
        ValueError: no row can be run, or a network does not fit the images.
        ResumeError: the folder is for another experiment or setting; nothing in it was touched.
        RunInterrupted: Ctrl-C or SIGTERM; finished images are kept.
    """
    folder = Path(out)
    jobs = runnable(experiment, setting)
    dataset = setting.dataset(experiment.images) if jobs else None
    for defence in dict.fromkeys(job.row.defence for job in jobs):
        # What does not fit is found out now and not hours later.
        assert dataset is not None
        enter(setting.defence(defence), dataset, fresh())
    claim(folder, experiment, setting)
    images = len(dataset) if dataset is not None else 0
    paths = {job: folder / RUNS / job.file(setting.small) for job in jobs}
    left = {job: _left(paths[job]) for job in jobs}
    clock = _Clock({job: left[job] * job_calls(job, setting, images) for job in jobs if left[job]})
    for number, job in enumerate(jobs, 1):
        what = f"{job.row.defence.label}, {job.called(setting.small)}"
        say(f"run {number} of {len(jobs)}: {what}{clock.left()}")
        attack = _attack(job, setting, folder)
        assert dataset is not None
        evaluate(
            setting.defence(job.row.defence),
            dataset,
            attack,
            job.row.protocol,
            paths[job],
            batch_size=batch_size,
            progress=progress,
        )
        clock.done(job)
    with ExitStack() as stack:
        bar = Progress(
            len(experiment.drawings) + 1, "parts", doing="drawing", shown=progress and on_terminal()
        )
        return _write(experiment, setting, folder, jobs, stack, stack.enter_context(bar), say)


def runnable(experiment: Experiment, setting: Setting) -> list[Job]:
    """The runs for which there are networks.

    Raises:
        ValueError: none, though there should be some; the message lists what is needed.
    """
    jobs = [job for job in experiment.jobs if not missing_words(job.row, setting)]
    drawn = [d.roles for drawing in experiment.drawings for d in drawing.defences]
    drawn += [drawing.roles for drawing in experiment.drawings if drawing.roles]
    if experiment.roles and not jobs and all(setting.lacking(roles) for roles in drawn):
        needs = "; ".join(f"{option(role)}FILE: {what}" for role, what in experiment.roles.items())
        raise ValueError(
            mistake(
                "networks",
                f"those of at least one row of {experiment.name} ({needs})",
                "none that suffices",
                "Or try --small, which needs no file",
            )
        )
    return jobs


def claim(folder: Path, experiment: Experiment, setting: Setting) -> None:
    """Note in ``folder`` what it is for; errors as for `claimed`."""
    wanted = claimed(folder, experiment, setting)
    replace_file(folder / CLAIM, (json.dumps(wanted, indent=1, sort_keys=True) + "\n").encode())


def claimed(folder: Path, experiment: Experiment, setting: Setting) -> dict[str, Any]:
    """What is to be noted in ``folder``; nothing is written.

    Raises:
        ResumeError: it is for something else.
        NotADirectoryError: it is a file.
    """
    wanted = {"experiment": experiment.name, **setting.describe()}
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; --out names a folder")
    note = folder / CLAIM
    if note.exists():
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
            found = found if isinstance(found, dict) else {}
        except ValueError:
            found = {}
        # Files that come later (a row's own network) are no other setting.
        files = (
            {**found.get("files", {}), **wanted.get("files", {})}
            if isinstance(found.get("files"), dict)
            else {}
        )
        changed = [name for name in wanted if name != "files" and found.get(name) != wanted[name]]
        changed += [f"file of {k}" for k, v in found.get("files", {}).items() if files.get(k) != v]
        if changed:
            told = (
                ", ".join(f"{name} {found.get(name)!r}" for name in changed if name in wanted) or changed[0]
            )
            raise ResumeError(f"{folder} holds another reproduction ({told}); choose another --out")
        return {**wanted, **({"files": files} if files else {})}
    if folder.is_dir() and any(folder.iterdir()):
        raise ResumeError(f"{folder} is not empty and holds no reproduction; choose another --out")
    return wanted


@final
class _Clock:
    """How long the runs that are left will take, by their network calls and the speed so far.

    Args:
        calls: of every run that is not finished, for the images that an earlier session has not done.
    """

    def __init__(self, calls: Mapping[Job, float]) -> None:
        self._left = dict(calls)
        self._done, self._begun = 0.0, time.monotonic()

    def done(self, job: Job) -> None:
        """``job`` has ended."""
        self._done += self._left.pop(job, 0)

    def left(self) -> str:
        """In words, "" before anything was measured."""
        if not self._done or not self._left:
            return ""
        seconds = int((time.monotonic() - self._begun) / self._done * sum(self._left.values()))
        return f"; about {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left for all runs"


def _left(path: Path) -> float:
    """The share of a run's images that are not done yet."""
    if not path.is_file():
        return 1.0
    with Run.open(path, verify=False) as run:
        return 1.0 - len(run.positions) / run.n_total


def _attack(job: Job, setting: Setting, folder: Path) -> Any:
    if job.row.source is None:
        return setting.attack(job.attack, job.row.defence)
    with Run.open(folder / RUNS / Job(job.row.source).file(setting.small)) as found:
        return found.as_attack()


def _write(
    experiment: Experiment,
    setting: Setting,
    folder: Path,
    jobs: list[Job],
    stack: ExitStack,
    bar: Progress,
    say: Say,
) -> list[Path]:
    say = bar.told(say)
    files = [folder / RUNS / job.file(setting.small) for job in jobs]
    entries = open_entries(files, stack) if files else []
    kept = Kept(folder / PIECES)
    made = Made(
        experiment.title,
        experiment.rows,
        experiment.images,
        setting,
        dict(zip(jobs, entries, strict=True)),
        kept,
        say,
    )
    written, contents = [], {}
    for drawing in experiment.drawings:
        say(f"drawing {drawing.name}")
        for name, content in drawing.draw(made).items():
            written.append(replace_file(folder / name, content))
            contents[name] = content
        bar.step()
    if entries:
        written.append(_page(experiment, made, entries, folder, say))
        contents[PAGE] = b""
    written.append(replace_file(folder / TABLE, markdown(experiment, made, contents).encode()))
    written.append(replace_file(folder / VALUES, as_json(experiment, made).encode()))
    return written


def _page(experiment: Experiment, made: Made, entries: list[Entry], folder: Path, say: Say) -> Path:
    defences = [d for d in experiment.defences if not made.setting.missing(d)]
    report(
        [entry.run for entry in entries],
        folder / PAGE,
        defense=[made.setting.defence(defence) for defence in defences],
        options=Options(f"{experiment.title}{made.suffix}"),
        force=True,
        say=say,
    )
    return folder / PAGE


@final
@dataclass(frozen=True, repr=False)
class Cost(Shown):
    """What an experiment will cost, before it is run; ``print`` it.

    Attributes:
        plans: of every run that can be made, for the images that are left, with its network calls; None where it is
            finished.
        drawn: network calls of the figures.
        hours: of all of it on this device; of the figures as long as their calls take in the runs.
    """

    experiment: str
    label: str
    plans: tuple[tuple[str, Plan | None, int], ...]
    drawn: int
    hours: float
    device: str

    @property
    def network_calls(self) -> int:
        """Of everything."""
        return sum(calls for _, _, calls in self.plans) + self.drawn

    def _shown(self) -> Card:
        runs = tuple(
            (name, f"{calls:,}", "" if one is None else _hours(one.hours)) for name, one, calls in self.plans
        )
        return Card(
            f"Cost of {self.experiment}: about {_hours(self.hours)} on {self.device}",
            (
                ("setting", self.label),
                ("runs", str(len(runs))),
                ("network calls", f"{self.network_calls:,} at most, {self.drawn:,} of them for figures"),
            ),
            grids=(Grid("runs", ("", "network calls", "time"), runs),),
        )

    def __str__(self) -> str:
        lines = [f"{self.experiment}: {self.label}"]
        for name, one, calls in self.plans:
            left = "finished" if one is None else f"{calls:,} network calls, about {_hours(one.hours)}"
            lines.append(f"run            {name}: {left}")
        if self.drawn:
            lines.append(f"figures        {self.drawn:,} network calls")
        lines.append(f"network calls  {self.network_calls:,}, at most (images through the network)")
        lines.append(f"time           about {_hours(self.hours)} on {self.device}, one process")
        return "\n".join(lines)


def cost(
    experiment: Experiment,
    setting: Setting,
    out: str | Path | None = None,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Cost:
    """What `reproduce` with these arguments would cost: calls counted, time measured on a few steps of each run.

    Images found by another run's attack cost their judging only. What is finished in the folder ``out`` costs nothing;
    of figures, only where all of it is. Nothing is written. With ``progress`` a bar is shown. Errors as
    for `reproduce`.
    """
    jobs = runnable(experiment, setting)
    if out is not None:
        claimed(Path(out), experiment, setting)
    shares = {job: 1.0 if out is None else _left(Path(out) / RUNS / job.file(setting.small)) for job in jobs}
    dataset = setting.dataset(experiment.images) if jobs or experiment.roles else None
    plans: list[tuple[str, Plan | None, int]] = []
    hours, speed = 0.0, 0.0
    bar = Progress(len(jobs), "runs", doing="measuring", shown=progress)
    for job in jobs:
        bar.to(len(plans), job.row.defence.label)
        assert dataset is not None
        name = f"{job.row.defence.label}, {job.called(setting.small)}"
        if not shares[job]:
            plans.append((name, None, 0))
            continue
        attack = setting.attack(job.attack, job.row.defence) if job.row.source is None else None
        one = plan(setting.defence(job.row.defence), dataset, attack, job.row.protocol, batch_size=batch_size)
        # What was found elsewhere is judged twice, like any other row.
        share = shares[job] * (1 if job.row.source is None else 2)
        calls = round(share * one.network_calls)
        hours += share * one.hours
        speed = max(speed, one.seconds_judgement / max(one.calls, 1))
        plans.append((name, replace(one, network_calls=calls, hours=share * one.hours), calls))
    bar.to(len(plans), "")
    bar.close()
    drawn = drawing_calls(experiment, setting, len(dataset) if dataset is not None else 0)
    if out is not None and (Path(out) / TABLE).is_file() and not any(shares.values()):
        drawn = 0  # the table is written last
    if drawn and not speed:
        assert dataset is not None
        speed = _speed(experiment, setting, dataset, batch_size)
    hours += drawn * speed / 3600
    return Cost(experiment.name, experiment.label(setting), tuple(plans), drawn, hours, setting.device)


def _speed(experiment: Experiment, setting: Setting, dataset: Dataset, batch_size: int) -> float:
    """Seconds of one network call of the figures, where no run has measured it."""
    given = [defence for defence in experiment.defences if not setting.missing(defence)]
    if given:
        one = plan(setting.defence(given[0]), dataset, batch_size=batch_size)
        return one.seconds_judgement / max(one.calls, 1)
    return max(drawing.speed(setting, dataset) for drawing in experiment.drawings)


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours:,.0f} hours ({hours / 24:.1f} days)"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.1f} seconds"
