"""`fastpure train flowpure`: a flow network from attacked to clean images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import train_options as given


def flowpure(
    data: given.Named = "digits",
    out: given.Out = None,
    data_path: given.DataPath = None,
    classifier: given.Guide = None,
    perturbation: Annotated[
        str,
        typer.Option(
            help="attack: images that the classifier mistakes, made anew in every step. gaussian: normal noise, which "
            "needs no classifier."
        ),
    ] = "attack",
    eps: Annotated[
        float | None, typer.Option(help="Linf radius of the attacked images, pixels in [0, 1].")
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(help="Deviation of the Gaussian perturbation, images in [-1, 1]. (default: 0.5)"),
    ] = None,
    path_noise: Annotated[
        float | None,
        typer.Option(help="Deviation of noise added on the path, images in [-1, 1]. (default: 0)"),
    ] = None,
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
    """Train FlowPure's network from random weights: the velocity from an attacked image to the clean one.

    Writes OUT/denoiser.safetensors for fastpure.methods.flowpure (with sigma 0 after training against attacks, the
    same sigma after a Gaussian one), OUT/metrics.csv and OUT/result.json. --eps and --classifier belong to the attack,
    whose step is a quarter of --eps, --sigma to gaussian.

    Example: fastpure train flowpure --data digits --out runs/digits-flowpure
    """
    from ..classifiers import load_classifier
    from ..errors import one_of
    from ..train import FLOWPURE_RECIPES, train_flowpure

    folder = out or Path("runs") / f"{data}-flowpure"
    images = given.images(data, data_path, FLOWPURE_RECIPES, folder, own=False)
    recipe = FLOWPURE_RECIPES[data]
    attacks = one_of("perturbation", perturbation, ("attack", "gaussian")) == "attack"
    changed = given.given(path_noise=path_noise)
    if attacks:
        given.refuse("sigma", sigma, "--perturbation gaussian")
        changed |= given.given(eps=eps, step_size=None if eps is None else eps / 4)
        kept = recipe.settings
    else:
        given.refuse("eps", eps, "--perturbation attack")
        given.refuse("classifier", classifier, "--perturbation attack")
        changed |= given.given(sigma=sigma)
        kept = {name: value for name, value in recipe.settings.items() if name == "augment"}
    count = given.steps(steps, epochs, images[0], batch_size or recipe.train.batch_size)
    options = {"steps": count, "batch_size": batch_size, "lr": lr, "seed": seed, "ema": ema}
    train = given.configured(recipe.train, clip, accumulate=accumulate, precision=precision, **options)
    settings = {**kept, "perturbation": perturbation, **changed}
    recipe = replace(recipe, settings=settings, train=train, **given.given(network=network))
    where = given.checked_device(device)
    name = classifier or recipe.classifier
    guide = load_classifier(name) if attacks and name is not None else None
    what = f"{recipe.network} against classifier {name}" if attacks else f"{recipe.network} against noise"
    given.announce(what, images[0].describe(), train.steps, folder)
    outcome = train_flowpure(
        recipe,
        guide,
        *images,
        folder,
        device=where,
        save_every=save_every,
        **given.watched(tracker, tensorboard),
    )
    given.report(outcome, train.steps, folder)
