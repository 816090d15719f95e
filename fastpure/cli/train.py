"""`fastpure train`: denoisers, classifiers and energies, from nothing to a safetensors file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import train_flow, train_robust
from . import train_options as given
from .settings import register

app = typer.Typer(
    no_args_is_help=True,
    help="Train a denoiser, a classifier or an energy, or fine-tune a denoiser against attacks. "
    "Interrupt with Ctrl-C at any time: the same command continues.",
)


def denoiser(
    data: given.Data = "digits",
    out: given.Out = None,
    data_path: given.DataPath = None,
    size: given.Size = None,
    key: given.Key = None,
    steps: given.Steps = None,
    epochs: given.Epochs = None,
    batch_size: given.BatchSize = None,
    lr: given.Rate = None,
    seed: given.Seed = None,
    ema: given.Ema = None,
    t_max: Annotated[
        float | None,
        typer.Option(
            help="Train for diffusion times up to this (0 to 1). Purification up to t* needs little more."
        ),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="vp: continuous times. discrete: the 1000 steps of DDPM, integer labels. "
            "edm: log-normal noise levels, the network inside EDM's preconditioning. "
            "flow: the velocity of the straight path from image to noise."
        ),
    ] = "vp",
    class_conditional: Annotated[
        bool,
        typer.Option(
            "--class-conditional", help="Tell the network each image's label (for DiffusionClassifier)."
        ),
    ] = False,
    label_dropout: Annotated[
        float,
        typer.Option(
            help="With --class-conditional: the share of images whose label is left out, so that the network can "
            "purify without classes too."
        ),
    ] = 0.0,
    network: given.Network = None,
    accumulate: given.Accumulate = None,
    precision: given.Precision = None,
    clip: given.Clip = None,
    device: given.Device = None,
    save_every: given.SaveEvery = 500,
    tracker: given.TrackerName = None,
    tensorboard: given.TensorBoard = False,
) -> None:
    """Train a denoiser (noise prediction on the continuous or discrete VP schedule, EDM, or flow matching).

    Writes OUT/denoiser.safetensors, which fastpure.load_denoiser reads, OUT/metrics.csv (the loss curve) and
    OUT/result.json (scores on held-out images). Given again, the same command continues an interrupted run.

    Example: fastpure train denoiser --data digits --out runs/digits-denoiser
    """
    from ..train import DENOISER_RECIPES, own_denoiser, train_denoiser

    folder = out or Path("runs") / f"{data}-denoiser"
    images = given.images(data, data_path, DENOISER_RECIPES, folder, size=size, key=key)
    recipe = DENOISER_RECIPES[data] if data in DENOISER_RECIPES else own_denoiser(images[0])
    recipe = recipe.with_schedule(schedule, t_max)
    count = given.steps(steps, epochs, images[0], batch_size or recipe.train.batch_size)
    options = {"steps": count, "batch_size": batch_size, "lr": lr, "seed": seed, "ema": ema}
    train = given.configured(recipe.train, clip, accumulate=accumulate, precision=precision, **options)
    loss = replace(recipe.loss, label_dropout=label_dropout)
    recipe = replace(recipe, loss=loss, class_conditional=class_conditional)
    recipe = replace(recipe, train=train, **given.given(network=network))
    where = given.checked_device(device)
    given.announce(recipe.name, images[0].describe(), train.steps, folder)
    outcome = train_denoiser(
        recipe, *images, folder, device=where, save_every=save_every, **given.watched(tracker, tensorboard)
    )
    given.report(outcome, train.steps, folder)


def classifier(
    data: given.Data = "digits",
    out: given.Out = None,
    data_path: given.DataPath = None,
    size: given.Size = None,
    key: given.Key = None,
    steps: given.Steps = None,
    epochs: given.Epochs = None,
    batch_size: given.BatchSize = None,
    lr: given.Rate = None,
    seed: given.Seed = None,
    ema: given.Ema = None,
    network: given.Network = None,
    accumulate: given.Accumulate = None,
    precision: given.Precision = None,
    clip: given.Clip = None,
    device: given.Device = None,
    save_every: given.SaveEvery = 500,
    tracker: given.TrackerName = None,
    tensorboard: given.TensorBoard = False,
) -> None:
    """Train a classifier (images in [0, 1] to logits).

    Writes OUT/classifier.safetensors, which fastpure.load_classifier reads, OUT/metrics.csv (the loss curve)
    and OUT/result.json (test accuracy). Given again, the same command continues an interrupted run.

    Example: fastpure train classifier --data digits --out runs/digits-classifier
    """
    from ..train import CLASSIFIER_RECIPES, own_classifier, train_classifier

    folder = out or Path("runs") / f"{data}-classifier"
    images = given.images(data, data_path, CLASSIFIER_RECIPES, folder, size=size, key=key)
    recipe = CLASSIFIER_RECIPES[data] if data in CLASSIFIER_RECIPES else own_classifier(images[0])
    count = given.steps(steps, epochs, images[0], batch_size or recipe.train.batch_size)
    options = {"steps": count, "batch_size": batch_size, "lr": lr, "seed": seed, "ema": ema}
    train = given.configured(recipe.train, clip, accumulate=accumulate, precision=precision, **options)
    recipe = replace(recipe, train=train, **given.given(network=network))
    where = given.checked_device(device)
    given.announce(recipe.name, images[0].describe(), train.steps, folder)
    outcome = train_classifier(
        recipe, *images, folder, device=where, save_every=save_every, **given.watched(tracker, tensorboard)
    )
    given.report(outcome, train.steps, folder)


def energy(
    data: given.Named = "digits",
    out: given.Out = None,
    data_path: given.DataPath = None,
    steps: given.Steps = None,
    epochs: given.Epochs = None,
    batch_size: given.BatchSize = None,
    lr: given.Rate = None,
    seed: given.Seed = None,
    ema: given.Ema = None,
    tau: Annotated[
        float | None, typer.Option(help="Size of a Langevin step's noise, in [-1, 1] units.")
    ] = None,
    n_iter: Annotated[
        int | None, typer.Option(help="Langevin steps of every chain between two optimiser steps.")
    ] = None,
    network: given.Network = None,
    accumulate: given.Accumulate = None,
    clip: given.Clip = None,
    device: given.Device = None,
    save_every: given.SaveEvery = 500,
    tracker: given.TrackerName = None,
    tensorboard: given.TensorBoard = False,
) -> None:
    """Train an energy for purification by Langevin dynamics (maximum likelihood by persistent chains).

    Writes OUT/energy.safetensors (fp16), which fastpure.load_energy reads, OUT/metrics.csv (the loss curve) and
    OUT/result.json. Given again, the same command continues an interrupted run, its chains included.

    Example: fastpure train energy --data digits --out runs/digits-energy
    """
    from ..train import ENERGY_RECIPES, train_energy

    folder = out or Path("runs") / f"{data}-energy"
    images = given.images(data, data_path, ENERGY_RECIPES, folder, own=False)
    recipe = ENERGY_RECIPES[data]
    count = given.steps(steps, epochs, images[0], batch_size or recipe.train.batch_size)
    options = {"steps": count, "batch_size": batch_size, "lr": lr, "seed": seed, "ema": ema}
    train = given.configured(recipe.train, clip, accumulate=accumulate, **options)
    loss = replace(recipe.loss, **given.given(tau=tau, n_iter=n_iter))
    recipe = replace(recipe, loss=loss, train=train, **given.given(network=network))
    where = given.checked_device(device)
    given.announce(recipe.network, images[0].describe(), train.steps, folder)
    outcome = train_energy(
        recipe, *images, folder, device=where, save_every=save_every, **given.watched(tracker, tensorboard)
    )
    given.report(outcome, train.steps, folder)


register(app, "denoiser", denoiser)
register(app, "classifier", classifier)
register(app, "energy", energy)
register(app, "addt", train_robust.addt)
register(app, "adbm", train_robust.adbm)
register(app, "trades", train_robust.trades)
register(app, "flowpure", train_flow.flowpure)
