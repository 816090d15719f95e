"""Options that all training commands share, and what the commands do before and after training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as devices
from .names import among

if TYPE_CHECKING:
    from ..train import Outcome, TrainConfig

Data = Annotated[
    str,
    typer.Option(
        help="Data set: digits (needs no file) or cifar10 (needs --data-path).",
        autocompletion=among(("digits", "cifar10")),
    ),
]
DataPath = Annotated[
    Path | None, typer.Option(help="File or folder with the images; needed for cifar10, not for digits.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for checkpoints, metrics and the result. (default: runs/DATA-COMMAND)"),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps. (default: what the data set needs)")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step, all processes together.")]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate. (default: the recipe's)")]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of everything random: the same seed gives the same network. (default: 0)"),
]
Ema = Annotated[float | None, typer.Option(help="Decay of the averaged weights, which are what is exported.")]
Network = Annotated[
    str | None, typer.Option(help="Name of the network's configuration. (default: one made for the data set)")
]
Accumulate = Annotated[
    int | None,
    typer.Option(help="Compute each batch in this many parts, to save memory. (default: 1)"),
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, or bf16: the network under autocast, weights and loss in float32."),
]
Clip = Annotated[
    float | None, typer.Option(help="Largest gradient norm; 0 does not clip. (default: the recipe's)")
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda or cuda:N. (default: cpu; under accelerate launch, each process's own)"),
]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="The same as --tracker tensorboard.")]
TrackerName = devices.TrackerName
Start = Annotated[
    str | None,
    typer.Option(
        help="Denoiser to start from: a bundled name or a file. (default for digits: the bundled one)"
    ),
]
Guide = Annotated[
    str | None,
    typer.Option(
        help="Classifier to train against: a bundled name or a file. (default for digits: the bundled)"
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """The options that were on the command line; the others keep the recipe's value."""
    return {name: value for name, value in options.items() if value is not None}


def watched(tracker: str | None, tensorboard: bool) -> dict[str, Any]:
    """``--tracker`` and ``--tensorboard`` as an argument of `fit`."""
    return {"trackers": [*(["tensorboard"] if tensorboard else []), *([] if tracker is None else [tracker])]}


def refuse(name: str, value: object, instead: str) -> None:
    """Raise ValueError if an option was given that belongs to another choice."""
    if value is not None:
        raise ValueError(f"`--{name}` belongs to {instead}, got {value}")


def configured(train: TrainConfig, clip: float | None, **options: Any) -> TrainConfig:
    """The recipe's optimisation with the given options; ``clip`` 0 stands for no clipping."""
    changed = replace(train, **given(**options))
    return changed if clip is None else replace(changed, clip=clip if clip != 0 else None)


def checked_device(name: str | None) -> str | None:
    """The device's name if torch can compute there, or None for the default."""
    return None if name is None else devices.checked_device(name)


def announce(network: object, data: str, steps: int, folder: Path) -> None:
    """Say what is trained on what, and where it goes (once, however many processes there are)."""
    from ..train import Group

    if Group.current().main:
        typer.echo(
            f"{network} on {data}\n{steps} steps into {folder}; Ctrl-C stops, the same command continues"
        )


def report(outcome: Outcome, steps: int, folder: Path) -> None:
    """Say how the run ended. An interrupted one leaves with exit status 130, as shells expect."""
    fit = outcome.fit
    if not fit.main:
        return
    if not fit.finished:
        typer.echo(f"stopped at step {fit.step} of {steps}, saved in {folder}; the same command continues")
        raise typer.Exit(130)
    if fit.resumed_at == fit.step:
        typer.echo(f"{folder} was finished before ({fit.step} steps); nothing was trained")
    elif fit.resumed_at:
        typer.echo(f"continued at step {fit.resumed_at}")
    typer.echo(f"{fit.step} steps in {fit.seconds:.0f} s")
    for line in outcome.table:
        typer.echo(line)
    typer.echo(f"weights: {outcome.weights}")
