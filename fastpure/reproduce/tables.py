"""The table of an experiment as Markdown and JSON, with the published numbers beside ours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..evaluate import Report
from ..evaluate.smaller import smallest
from ..intervals import Interval
from ..presets import TAGS, Published
from ..report.data import Entry
from .count import FULL_CALLS
from .experiment import Experiment
from .made import Made
from .parts import MISSING, Job, Row
from .settings import Setting, option

HEAD = (
    "defence",
    "attack",
    "decided on",
    "images",
    "clean %",
    "robust %",
    "published: clean %",
    "published: robust %",
)


def chosen(row: Row, entries: Mapping[Job, Entry]) -> tuple[Job, Entry] | None:
    """The run that counts: of several attacks the one that leaves least; None until all of them are there."""
    found = [(job, entries[job]) for job in row.runs if job in entries]
    if len(found) < len(row.runs):
        return None
    return min(found, key=lambda pair: _robust(pair[1].summary))


def robust_of(row: Row, entries: Mapping[Job, Entry]) -> Interval | None:
    """The accuracy of the run that counts; of several with an interval that holds for the smaller of them all."""
    found = [entries[job].summary.robust for job in row.runs if job in entries]
    accuracies = [one for one in found if one is not None]
    if not accuracies or len(accuracies) < len(row.runs):
        return None
    if len(accuracies) == 1:
        return accuracies[0]
    return smallest([one.estimate * one.n for one in accuracies], accuracies[0].n)[1]


def _robust(report: Report) -> float:
    return report.robust.estimate if report.robust is not None else math.inf


def markdown(experiment: Experiment, made: Made, files: Mapping[str, bytes]) -> str:
    """The page of an experiment: title, table, figures and notes.

    Args:
        files: the experiment's other files, name -> content; pictures are shown, texts are told, others linked.
    """
    setting = made.setting
    lines = [f"# {experiment.title}", "", f"{experiment.paper}. Ours: {experiment.label(setting)}."]
    if experiment.rows:
        lines += ["", *_table(made)]
        lines += ["", _legend(made)]
    for name, content in files.items():
        stem, ending = name.rsplit(".", 1)
        shown = {"md": content.decode().rstrip() if ending == "md" else "", "json": ""}
        called = stem.replace("-", " ")
        link = (
            f"![{called}]({name})"
            if ending in ("svg", "png")
            else f"[all runs, with comparisons and checks]({name})"
        )
        lines += ["", told] if (told := shown.get(ending, link)) else []
    lines += [f"\n- {note}" if i == 0 else f"- {note}" for i, note in enumerate(_notes(experiment, made))]
    return "\n".join(lines) + "\n"


def as_json(experiment: Experiment, made: Made) -> str:
    """The same as values."""
    setting = made.setting
    value = {
        "experiment": experiment.name,
        "title": experiment.title,
        "paper": experiment.paper,
        "setting": {"label": experiment.label(setting), **setting.describe()},
        "rows": [_values(row, made) for row in experiment.rows],
        "notes": list(_notes(experiment, made)),
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def missing_words(row: Row, setting: Setting) -> str:
    """Why a row was not run; "" if nothing is missing."""
    roles = dict.fromkeys(setting.missing(row.defence))
    if row.source is not None:
        roles |= dict.fromkeys(setting.missing(row.source.defence))
    return f"needs {', '.join(f'{option(role)}FILE' for role in roles)}" if roles else ""


def _table(made: Made) -> Iterator[str]:
    small = made.setting.small
    own = " (digits)" if small else ""
    head = [f"{name}{own}" if name in ("clean %", "robust %") else name for name in HEAD]
    yield f"| {' | '.join((*head, 'warnings'))} |"
    yield "|" + "---|" * (len(HEAD) + 1)
    for row in made.rows:
        first, *others = row.published or (None,)
        yield f"| {' | '.join((*_ours(row, made), *_paper(first), _warnings(row, made)))} |"
        for other in others:
            blank = [""] * 6
            yield f"| {' | '.join((*blank, *_paper(other), ''))} |"


def _ours(row: Row, made: Made) -> list[str]:
    found = chosen(row, made.entries)
    small = made.setting.small
    if found is None:
        attack = " or ".join(job.called(small) for job in row.runs)
        why = missing_words(row, made.setting) or "not run"
        return [row.defence.label, attack, str(row.protocol), "", f"not run: {why}", ""]
    job, entry = found
    report = entry.summary
    attack = job.called(small)
    if len(row.runs) > 1:
        others = ", ".join(other.called(small) for other in row.runs if other != job)
        attack += f" (the lower; also run: {others})"
    cells = [_interval(report.clean), _interval(robust_of(row, made.entries))]
    if report.transfer is not None:
        cells[1] += f"; on fresh noise {_interval(report.transfer)}"
    return [row.defence.label, attack, report.protocol, str(report.n_images), *cells]


def _paper(number: Published | None) -> list[str]:
    if number is None:
        return [MISSING, MISSING]
    clean, robust = (MISSING if v is None else f"{v:.2f}" for v in (number.clean, number.robust))
    note = f"; {number.note}" if number.note else ""
    return [clean, f"{robust} ({number.protocol}; {number.source} [{number.tag}]{note})"]


def _warnings(row: Row, made: Made) -> str:
    found = chosen(row, made.entries)
    return "" if found is None else ", ".join(warning.name for warning in found[1].summary.warnings)


def _interval(value: Interval | None) -> str:
    return "" if value is None else str(value).replace(" %", "")


def _legend(made: Made) -> str:
    rows, setting = made.rows, made.setting
    said = "Ours with 95 % Wilson intervals over images; published numbers as printed there, each in its own setting."
    if any(len(row.runs) > 1 for row in rows):
        said += " Of several attacks the one that leaves least counts, with an interval that holds for all together."
    used = {number.tag for row in rows for number in row.published}
    known = "; ".join(f"[{tag}] {words}" for tag, words in TAGS.items() if tag in used)
    said += f" {known}." if known else ""
    return f"{said} {setting.label[0].upper()}{setting.label[1:]}." if setting.small else said


def _notes(experiment: Experiment, made: Made) -> Iterator[str]:
    yield from experiment.notes
    yield from made.notes


def _values(row: Row, made: Made) -> dict[str, Any]:
    found = chosen(row, made.entries)
    small = made.setting.small
    value: dict[str, Any] = {
        "defence": row.defence.label,
        "attacks": [job.called(small) for job in row.runs],
        "protocol": str(row.protocol),
        "published": [
            {
                "protocol": n.protocol,
                "clean": n.clean,
                "robust": n.robust,
                "source": n.source,
                "evidence": n.tag,
            }
            | ({"note": n.note} if n.note else {})
            for n in row.published
        ],
    }
    if found is None:
        return {**value, "not_run": missing_words(row, made.setting) or "not run"}
    job, entry = found
    report = entry.summary
    return {
        **value,
        "counts": job.called(small),
        "images": report.n_images,
        "clean": _numbers(report.clean),
        "robust": _numbers(robust_of(row, made.entries)),
        "on_fresh_noise": _numbers(report.transfer),
        "warnings": [warning.name for warning in report.warnings],
        "files": {j.called(small): f"runs/{j.file(small)}" for j in row.runs},
        "digest": report.digest,
    }


def _numbers(value: Interval | None) -> dict[str, float] | None:
    if value is None:
        return None
    return {name: round(100 * getattr(value, name), 4) for name in ("estimate", "low", "high")}


def listing(experiments: Mapping[str, Experiment]) -> Iterator[str]:
    """A line per experiment: name, what it shows, paper, networks, cost."""
    width = max(map(len, experiments))
    for name, one in experiments.items():
        roles = ", ".join(one.roles) or "no network"
        cost = f"{_count(FULL_CALLS[name])} network calls" if FULL_CALLS[name] else "no network call"
        yield f"{name:<{width}}  {one.title}; {one.paper.split(',')[0]}; needs {roles}; {cost}"


def _count(calls: int) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if calls >= size:
            return f"{calls / size:.3g} {word}"
    return f"{calls:,}"
