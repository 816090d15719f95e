"""`fastpure train`: denoisers and classifiers, from nothing to a safetensors file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Train a denoiser or a classifier. Interrupt with Ctrl-C at any time: the same command continues.",
)

Data = Annotated[str, typer.Option(help="Data set: digits (needs no file) or cifar10 (needs --data-path).")]
DataPath = Annotated[
    Path | None, typer.Option(help="File or folder with the images; needed for cifar10, not for digits.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for checkpoints, metrics and the result. (default: runs/DATA-denoiser or -classifier)"
    ),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps. (default: what the data set needs)")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.")]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate; it then falls to zero along a cosine.")]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of everything random: the same seed gives the same network. (default: 0)"),
]
Ema = Annotated[float | None, typer.Option(help="Decay of the averaged weights, which are what is exported.")]
Network = Annotated[
    str | None, typer.Option(help="Name of the network's configuration. (default: one made for the data set)")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints.")]


@app.command()
def denoiser(
    data: Data = "digits",
    out: Out = None,
    data_path: DataPath = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    seed: Seed = None,
    ema: Ema = None,
    t_max: Annotated[
        float | None,
        typer.Option(
            help="Train for diffusion times up to this (0 to 1). Purification up to t* needs little more."
        ),
    ] = None,
    network: Network = None,
    device: Device = "cpu",
    save_every: SaveEvery = 500,
) -> None:
    """Train a denoiser (noise prediction, continuous VP schedule).

    Writes OUT/denoiser.safetensors, which fastpure.load_denoiser reads, OUT/metrics.csv (the loss curve) and
    OUT/result.json (scores on held-out images). Given again, the same command continues an interrupted run.

    Example: fastpure train denoiser --data digits --out runs/digits-denoiser
    """
    from ..data import load_dataset
    from ..errors import one_of
    from ..train import DENOISER_RECIPES, train_denoiser

    recipe = DENOISER_RECIPES[one_of("data", data, DENOISER_RECIPES)]
    train = replace(recipe.train, **_given(steps=steps, batch_size=batch_size, lr=lr, seed=seed, ema=ema))
    recipe = replace(
        recipe, train=train, loss=replace(recipe.loss, **_given(t_max=t_max)), **_given(network=network)
    )
    folder = out or Path("runs") / f"{data}-denoiser"
    images = (load_dataset(data, "train", path=data_path), load_dataset(data, "test", path=data_path))
    _announce(recipe.network, images[0].describe(), train.steps, folder)
    outcome = train_denoiser(recipe, *images, folder, device=_device(device), save_every=save_every)
    _report(outcome, train.steps, folder)


@app.command()
def classifier(
    data: Data = "digits",
    out: Out = None,
    data_path: DataPath = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    seed: Seed = None,
    ema: Ema = None,
    network: Network = None,
    device: Device = "cpu",
    save_every: SaveEvery = 500,
) -> None:
    """Train a classifier (images in [0, 1] to logits).

    Writes OUT/classifier.safetensors, which fastpure.load_classifier reads, OUT/metrics.csv (the loss curve)
    and OUT/result.json (test accuracy). Given again, the same command continues an interrupted run.

    Example: fastpure train classifier --data digits --out runs/digits-classifier
    """
    from ..data import load_dataset
    from ..errors import one_of
    from ..train import CLASSIFIER_RECIPES, train_classifier

    recipe = CLASSIFIER_RECIPES[one_of("data", data, CLASSIFIER_RECIPES)]
    train = replace(recipe.train, **_given(steps=steps, batch_size=batch_size, lr=lr, seed=seed, ema=ema))
    recipe = replace(recipe, train=train, **_given(network=network))
    folder = out or Path("runs") / f"{data}-classifier"
    images = (load_dataset(data, "train", path=data_path), load_dataset(data, "test", path=data_path))
    _announce(recipe.network, images[0].describe(), train.steps, folder)
    outcome = train_classifier(recipe, *images, folder, device=_device(device), save_every=save_every)
    _report(outcome, train.steps, folder)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were on the command line; the others keep the recipe's value."""
    return {name: value for name, value in options.items() if value is not None}


def _device(name: str) -> str:
    import torch

    from ..errors import mistake

    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(mistake("device", "cpu, cuda or cuda:N", repr(name))) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(mistake("device", "cpu", repr(name), "This torch sees no CUDA device."))
    return name


def _announce(network: str, data: str, steps: int, folder: Path) -> None:
    typer.echo(f"{network} on {data}\n{steps} steps into {folder}; Ctrl-C stops, the same command continues")


def _report(outcome: Any, steps: int, folder: Path) -> None:
    """Say how the run ended. An interrupted one leaves with exit status 130, as shells expect."""
    fit = outcome.fit
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
