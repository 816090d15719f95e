"""A run as an entry of RobustBench's leaderboard: the JSON that its ``model_info`` folder has for each model.

All numbers are the run's. What a run cannot know (link, title, authors, venue, architecture, extra data, the number
that a paper reports) comes from the caller, or is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import mistake, one_of
from ..evaluate import Report, Run
from ..files import Unfinished, replace_file
from .data import value_text
from .page import refuse_existing
from .rebuild import calls_per_purification
from .tables import explain

DATASETS = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
"""RobustBench's data sets, and how many of their images its leaderboard counts."""

THREATS = ("Linf", "L2")

ABOUT = ("link", "name", "authors", "additional_data", "venue", "architecture", "reported")
"""What the caller tells of the model; the names are RobustBench's."""


def robustbench_entry(run: Run | str | Path, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of RobustBench's ``model_info/DATASET/THREAT/NAME.json`` for a finished run.

    ``autoattack_acc`` is there only if AutoAttack's standard version was run; what any other attack found is
    ``external``, which RobustBench ranks by where it is given. The footnote has the attack, the rule that decided, the
    number of images and the intervals. ``unreliable`` is true for a defence that draws noise, which RobustBench's rules
    exclude, and where the run itself warns of a weak attack; the footnote says which.

    Args:
        about: any of `ABOUT`.

    Raises:
        ValueError: an unfinished run, one without attack, of another data set or budget than RobustBench has, or
            an unknown name in ``about``.
        FileNotFoundError, RunDamaged: see `Run.open`.
    """
    for name in about or {}:
        one_of("about", name, ABOUT)
    with ExitStack() as stack:
        opened = run if isinstance(run, Run) else stack.enter_context(Run.open(run))
        return _entry(opened, dict(about or {}))


def write_robustbench(
    run: Run | str | Path,
    path: str | Path,
    about: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    within: Unfinished | None = None,
) -> Path:
    """Write `robustbench_entry` to ``path``, which RobustBench expects at ``model_info/DATASET/THREAT/NAME.json``.

    Raises:
        FileExistsError: it exists and ``force`` is not given.
        StoreUnavailable, DiskFull: it cannot be written.
        Otherwise as `robustbench_entry`; nothing is written then.
    """
    entry = robustbench_entry(run, about)
    refuse_existing([Path(path)], force, within)
    content = (json.dumps(entry, indent=2, ensure_ascii=False) + "\n").encode()
    return replace_file(path, content) if within is None else within.write(path, content)


def _entry(run: Run, about: dict[str, Any]) -> dict[str, Any]:
    data, attack, defense = run.identity["data"], run.identity["attack"], run.identity["defense"]
    one_of("the run's data set", data["name"], DATASETS)
    if not run.complete:
        raise ValueError(mistake("run", "finished", f"{len(run.positions)} of {run.n_total} images"))
    settings = {} if attack is None else attack["settings"]
    if settings.get("eps") is None or settings.get("norm") not in THREATS:
        got = "none" if attack is None else f"{attack['name']}, {settings.get('norm', 'no norm')}"
        raise ValueError(mistake("run", f"one with an attack within {' or '.join(THREATS)}", got))
    report = Report.of(run)
    assert report.robust is not None
    standard = attack["name"] == "AutoAttack" and settings.get("version") == "standard"
    random = report.spread is not None or run.protocol.noise == "known"
    known = {name: about.get(name) for name in ABOUT}
    return {
        "link": known["link"],
        "name": known["name"],
        "authors": known["authors"],
        "additional_data": known["additional_data"],
        "number_forward_passes": calls_per_purification(run.identity),
        "dataset": data["name"],
        "venue": known["venue"],
        "architecture": known["architecture"] or str(defense["classifier"]["class"]).rsplit(".", 1)[-1],
        "eps": value_text("eps", settings["eps"]),
        "clean_acc": _percent(report.clean.estimate),
        "reported": known["reported"],
        ("autoattack_acc" if standard else "external"): _percent(report.robust.estimate),
        "footnote": _footnote(run, report, random),
        "unreliable": random or bool(report.warnings),
    }


def _footnote(run: Run, report: Report, random: bool) -> str:
    usual = DATASETS[run.identity["data"]["name"]]
    parts = [
        f"Attack: {report.attack}.",
        f"Decided by {report.protocol}: {explain(run.protocol)}",
        f"{report.n_images} images; clean {report.clean}, robust {report.robust} (95 % Wilson intervals).",
    ]
    if report.n_images < usual:
        parts.append(f"The leaderboard counts {usual} images.")
    if run.protocol.noise == "known":
        parts.append("The noise was held and known to the attacker; deployed, the defence draws it.")
    elif random:
        parts.append("The defence draws noise, which RobustBench's rules exclude.")
    parts += [f"Warning: {warning.explanation}." for warning in report.warnings]
    return f"{' '.join(part.strip() for part in parts)} Measured with fastpure, content {report.digest[:12]}."


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
