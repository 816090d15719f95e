"""`fastpure sweep`: the same evaluation for several values of t, scale, steps or any other setting."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .experiment import build
from .values import literal

SHORT = ("t", "scale", "steps", "dt", "eps", "n_iter", "eot_iter", "norm")


@o.experiment_options
def sweep(
    wanted: o.Request,
    over: Annotated[
        list[str],
        typer.Option(
            metavar="<name=values>",
            help="NAME=VALUE,VALUE,...; may be repeated, then every combination is run. Names: t, scale, steps, dt, "
            "eps, n-iter, eot-iter, method.NAME, attack.NAME or classifier.NAME (of a diffusion classifier).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run files, one per combination.")] = Path(
        "runs/sweep"
    ),
    protocol: Annotated[str, typer.Option(help="As for `fastpure evaluate`.")] = "fresh",
    draws: Annotated[int | None, typer.Option(help="Fresh draws per image.")] = None,
    batch_size: o.BatchSize = 64,
    progress: Annotated[bool, typer.Option(help="Show images, time left and accuracy so far.")] = True,
) -> None:
    """Evaluate over a grid of settings; the same command continues, and finished points are not run again.

    Example: fastpure sweep --n 50 --over t=0.05,0.1,0.15,0.2 --over scale=0,1,2 --out runs/t-scale
    """
    from ..evaluate.protocol import make

    points = grid(over)
    with o.interruptible():
        rules = make(protocol, draws, **wanted.extra["protocol"])
        reports = run_points(wanted, points, rules, out, batch_size, progress)
    print_table(points, reports)
    print_warnings(points, reports)
    print_findings(reports)


def grid(over: list[str]) -> list[dict[str, Any]]:
    """Every combination of the listed values, the last name varying fastest."""
    names, lists = [], []
    for text in over:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        kind, dot, rest = name.partition(".")
        if (
            not equals
            or not values.strip()
            or not (name in SHORT or (dot and rest and kind in ("method", "attack", "classifier")))
        ):
            raise ValueError(
                f"`--over` must be NAME=VALUE,... with NAME among {', '.join(SHORT)}, method.NAME, attack.NAME, "
                f"classifier.NAME, got {text!r}"
            )
        names.append(name)
        lists.append([literal(value.strip()) for value in values.split(",") if value.strip()])
    if len(set(names)) != len(names):
        raise ValueError("`--over` names the same setting twice")
    return [dict(zip(names, values, strict=True)) for values in product(*lists)]


def changed(wanted: o.Request, point: dict[str, Any]) -> o.Request:
    """The request with the settings of one point."""
    given = {**wanted.given, **{name: value for name, value in point.items() if "." not in name}}
    extra = {kind: dict(values) for kind, values in wanted.extra.items()}
    for name, value in point.items():
        kind, dot, rest = name.partition(".")
        if dot:
            extra[kind][rest] = value
    return replace(wanted, given=given, extra=extra)


def run_points(
    wanted: o.Request,
    points: list[dict[str, Any]],
    protocol: Any,
    folder: Path,
    batch_size: int,
    progress: bool,
) -> list[Any]:
    """Evaluate every point into its own file; all are assembled first, so that a mistake costs no time."""
    from ..evaluate import evaluate

    experiments = [build(changed(wanted, point)) for point in points]
    reports = []
    for number, (point, experiment) in enumerate(zip(points, experiments, strict=True), 1):
        path = folder / f"{file_name(point)}.sqlite"
        if progress:
            typer.echo(f"{number} of {len(points)}: {describe(point)}", err=True)
        reports.append(
            evaluate(
                experiment.defense,
                experiment.dataset,
                experiment.attack,
                protocol,
                path,
                batch_size=batch_size,
                progress=progress,
            )
        )
    return reports


def describe(point: dict[str, Any]) -> str:
    """ "t=0.1, scale=1"."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in point.items()
    )


def file_name(point: dict[str, Any]) -> str:
    """The point as a file name."""
    text = "-".join(f"{name}={value}" for name, value in point.items())
    return "".join(c if c.isalnum() or c in "=-._" else "_" for c in text)


def print_table(points: list[dict[str, Any]], reports: list[Any]) -> None:
    """A row per point: its settings, clean and robust accuracy with intervals."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{reports[0].protocol}, 95 % Wilson intervals", title_justify="left")
    for name in (*points[0], "clean", "robust", "warnings"):
        table.add_column(name, justify="right")
    for point, report in zip(points, reports, strict=True):
        robust = "-" if report.robust is None else str(report.robust)
        names = ", ".join(warning.name for warning in report.warnings)
        table.add_row(
            *(f"{v:g}" if isinstance(v, float) else str(v) for v in point.values()),
            str(report.clean),
            robust,
            names,
        )
    Console(width=120).print(table)


def print_warnings(points: list[dict[str, Any]], reports: list[Any]) -> None:
    """The alarms of every point; one that all have is said once."""
    said = [[str(warning) for warning in report.warnings] for report in reports]
    common = [text for text in said[0] if all(text in texts for texts in said)] if len(said) > 1 else []
    for text in common:
        typer.echo(f"WARNING   all points: {text}")
    for point, texts in zip(points, said, strict=True):
        for text in texts:
            if text not in common:
                typer.echo(f"WARNING   {describe(point)}: {text}")


def print_findings(reports: list[Any]) -> None:
    """What several points together say about the attack: whether more iterations or draws still help, for one."""
    from contextlib import ExitStack

    from ..evaluate import Run, across

    with ExitStack() as stack:
        runs = [stack.enter_context(Run.open(report.path, verify=False)) for report in reports]
        for finding in across(runs):
            typer.echo(f"{'WARNING   ' if finding.alarm else ''}{finding}")
