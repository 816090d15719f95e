"""`fastpure merge` and `fastpure compare`: what is done with run files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    out: Annotated[Path, typer.Argument(help="The run file to write.")],
    shards: Annotated[list[Path], typer.Argument(help="Run files made with --shard, all of them.")],
) -> None:
    """Put the shards of a run together; the result equals that of a single process.

    Example: fastpure merge all.sqlite part-1.sqlite part-2.sqlite
    """
    from ..evaluate import Report, Run
    from ..evaluate import merge as join

    with Run.open(join(out, shards)) as run:
        typer.echo(str(Report.of(run)))


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run files on the same images.")],
    which: Annotated[str, typer.Option(help="adversarial, or clean: the originals.")] = "adversarial",
    protocol: Annotated[
        str | None,
        typer.Option(help="Decide all runs by this protocol. (default: their own, if it is the same)"),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Draws of that protocol.")] = None,
) -> None:
    """Compare runs image by image: difference with interval and exact McNemar test, and signs of weak attacks.

    Each run is compared with the first; the alarms of each follow. Runs that differ in the attack's seed only are
    restarts: their spread is shown too. Of versions of AutoAttack that differ in nothing else and decided by its own
    check, the smaller accuracy is told, as papers do.

    Example: fastpure compare runs/diffpure.sqlite runs/coup.sqlite
    """
    from contextlib import ExitStack, suppress

    from ..evaluate import Run, across, compare_runs, restart_spread, smaller_of, versions_of
    from ..evaluate.protocol import make
    from ..evaluate.weakness import warnings

    if len(runs) < 2:
        raise ValueError(f"`runs` must be two or more files, got {len(runs)}")
    rules = None if protocol is None else make(protocol, draws)
    with ExitStack() as stack:
        opened = [stack.enter_context(Run.open(path)) for path in runs]
        for other in opened[1:]:
            typer.echo(f"a: {opened[0].path}\nb: {other.path}")
            typer.echo(f"{compare_runs(opened[0], other, protocol=rules, which=which)}\n")
        with suppress(
            ValueError
        ):  # raised where they are no restarts of one another, which is the usual case
            typer.echo(str(restart_spread(opened)))
        for group in versions_of(opened):
            typer.echo(str(smaller_of([opened[number] for number in group])))
        for run in opened:
            for warning in warnings(run):
                typer.echo(f"WARNING   {run.path}: {warning}")
        for finding in across(opened):
            typer.echo(f"{'WARNING   ' if finding.alarm else ''}{finding}")
