"""`fastpure evaluate`: how accurate and how robust a defended classifier is, with intervals, in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import names
from . import options as o
from .experiment import PUBLISHED, Experiment, build, digest_of

Protocol = Annotated[
    str,
    typer.Option(
        help="Who decides: fresh (mean over fresh noise draws), any_of_n, majority, average (of the draws' logits, or "
        "with --set protocol.of=softmax of their probabilities), dw_box (the attacker knows the noise), "
        "legacy_autoattack (one draw, as in papers), published (with --preset: all attacks of the paper's number by "
        "the paper's rule, and the smallest accuracy of them).",
        autocompletion=names.among((*names.PROTOCOLS, PUBLISHED)),
    ),
]
Draws = Annotated[int | None, typer.Option(help="Fresh draws per image. (default: the protocol's)")]
Progress = Annotated[bool, typer.Option(help="Show images, time left and accuracy so far.")]


@o.experiment_options
def evaluate(
    wanted: o.Request,
    protocol: Protocol = "fresh",
    draws: Draws = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run file; with --protocol published a folder. (default: in runs/, named after the experiment)"
        ),
    ] = None,
    batch_size: o.BatchSize = 64,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure for a few seconds and print what the run would cost.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="Only part i of n, as i/n; put the files together with `fastpure merge`."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: all workers of a Ray cluster (needs the extra 'ray').")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Ray workers. (default: one per GPU or CPU slot)")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            help="Devices of this machine, separated by commas, such as cuda:0,cuda:1 or cpu,cpu: a process for each, "
            "one file, one bar. Takes the place of --device."
        ),
    ] = None,
    tracker: o.TrackerName = None,
    progress: Progress = True,
) -> None:
    """Attack a defended classifier and judge it, with 95 % intervals; everything goes into one file.

    Interrupt with Ctrl-C at any time, or let it be killed: the same command continues, to the same result.

    Examples:

      fastpure evaluate --n 50 --dry-run

      fastpure evaluate --n 50 --method diffpure --attack apgd-ce --eps 0.2

      fastpure evaluate --preset coup-cifar10-linf --classifier wrn.pt \\
          --denoiser checkpoint_8.pth --data-path cifar-10-python.tar.gz

    The same with --protocol published attacks it twice, as the paper did, and tells the smaller accuracy.
    """
    wanted, places = on_devices(wanted, devices)
    if protocol == PUBLISHED:
        from .published import evaluate_by_rule

        how = {
            "engine": engine,
            "workers": workers,
            "progress": progress,
            "devices": places,
            "tracker": tracker,
        }
        evaluate_by_rule(wanted, draws, out, batch_size, dry_run, shard, how)
        return
    from ..evaluate import evaluate as run
    from ..evaluate import plan
    from ..evaluate.protocol import make
    from ..evaluate.shards import parse_shard
    from ..progress import on_terminal

    rules = make(protocol, draws, **wanted.extra["protocol"])
    part = None if shard is None else parse_shard(shard)
    experiment = build(wanted)
    if dry_run:
        parts = (experiment.defense, experiment.dataset, experiment.attack, rules)
        cost = plan(*parts, batch_size=batch_size, progress=progress and on_terminal())
        typer.echo(str(cost))
        return
    path = out or default_path(experiment, rules, part, batch_size)
    if progress:
        typer.echo(f"into {path}; Ctrl-C stops, the same command continues", err=True)
    with o.interruptible():
        report = run(
            experiment.defense,
            experiment.dataset,
            experiment.attack,
            rules,
            path,
            batch_size=batch_size,
            progress=progress,
            shard=part,
            engine=engine,
            workers=workers,
            devices=places,
            tracker=tracker,
        )
    typer.echo(str(report))


def on_devices(wanted: o.Request, devices: str | None) -> tuple[o.Request, list[str] | None]:
    """The request with the first of ``devices`` as its own, where the defence is built, and all of them by name."""
    if devices is None:
        return wanted, None
    names = [o.checked_device(name.strip()) for name in devices.split(",")]
    if wanted.device not in ("cpu", names[0]):
        raise ValueError(f"`--device` must be left out with --devices, got {wanted.device} and {devices}")
    return replace(wanted, device=names[0]), names


def default_path(
    experiment: Experiment, protocol: Any, shard: tuple[int, int] | None, batch_size: int
) -> Path:
    """A name that is the same for the same experiment and for no other."""
    part = "" if shard is None else f"-{shard[0]}of{shard[1]}"
    digest = digest_of([experiment], protocol, batch_size)
    return Path("runs") / f"{experiment.label}-{protocol.name}-{digest}{part}.sqlite"
