"""Options that all training commands share, and what the commands do before and after training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as devices
from .names import among
from .options import Key as Key

if TYPE_CHECKING:
    from ..data import Dataset
    from ..train import Outcome, TrainConfig

Data = Annotated[
    str,
    typer.Option(
        help="Data set: digits (needs no file), cifar10, or one's own: folder (PATH/train/CLASS and PATH/test/CLASS, "
        "or PATH/CLASS), imagenet (the same, cut as ImageNet is), arrays (.npz or a folder of .npy).",
        autocompletion=among(("digits", "cifar10", "folder", "imagenet", "arrays")),
    ),
]
Named = Annotated[
    str, typer.Option(help="Data set: digits (needs no file).", autocompletion=among(("digits",)))
]
DataPath = Annotated[
    Path | None, typer.Option(help="File or folder with the images; needed for all but digits.")
]
Size = Annotated[
    int | None,
    typer.Option(
        help="For folder and imagenet: pictures become squares of this side. (default: as they are; 224 for imagenet)"
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for checkpoints, metrics and the result. (default: runs/DATA-COMMAND)"),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Optimiser steps; more than before continue a finished run. (default: what the data set needs)"
    ),
]
Epochs = Annotated[float | None, typer.Option(help="Instead of --steps: how many times every image is seen.")]
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


def images(
    data: str,
    path: Path | None,
    recipes: Iterable[str],
    folder: Path,
    *,
    own: bool = True,
    size: int | None = None,
    key: str | None = None,
) -> tuple[Dataset, Dataset]:
    """Images to train on and to score on, of a data set that has a recipe or, with ``own``, of one's own.

    ``folder``: of the run, where the pixels of large folders are kept.
    """
    from ..data import OWN, load_dataset, train_and_test
    from ..errors import one_of

    one_of("data", data, (*recipes, *(OWN if own else ())))
    if own and data in OWN:
        return train_and_test(data, path, key=key, size=size, keep=folder / "pixels")
    refuse("size", size, "--data folder and imagenet")
    refuse("key", key, "--data arrays")
    return load_dataset(data, "train", path=path), load_dataset(data, "test", path=path)


def steps(number: int | None, epochs: float | None, data: Dataset, batch_size: int) -> int | None:
    """The optimiser steps that were asked for, as a number of them or of epochs; None for neither."""
    from ..train import steps_of

    if epochs is None:
        return number
    refuse("steps", number, "a command without --epochs")
    return steps_of(epochs, len(data), batch_size)


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
    elif fit.resumed_at in fit.extended:
        typer.echo(f"went on from a run of {fit.resumed_at} steps that was finished")
    elif fit.resumed_at:
        typer.echo(f"continued at step {fit.resumed_at}")
    typer.echo(f"{fit.step} steps in {fit.seconds:.0f} s")
    for line in outcome.table:
        typer.echo(line)
    typer.echo(f"weights: {outcome.weights}")
