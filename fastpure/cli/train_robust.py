"""`fastpure train addt|adbm|trades`: training against attacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import train_options as given

if TYPE_CHECKING:
    from ..data import Dataset
    from ..train import FineTuneRecipe

Eps = Annotated[float | None, typer.Option(help="Linf radius of the perturbations, pixels in [0, 1].")]


def addt(
    data: given.Data = "digits",
    out: given.Out = None,
    data_path: given.DataPath = None,
    size: given.Size = None,
    key: given.Key = None,
    start: given.Start = None,
    classifier: given.Guide = None,
    variant: Annotated[
        str, typer.Option(help="gaussian: rank-based Gaussian mapping, as published. linf: its ablation.")
    ] = "gaussian",
    unit: Annotated[
        float | None,
        typer.Option(help="Size of the Gaussian perturbation, as deviation of images in [-1, 1]."),
    ] = None,
    eps: Eps = None,
    t_max: Annotated[float | None, typer.Option(help="Latest diffusion time trained on (0 to 1).")] = None,
    steps: given.Steps = None,
    epochs: given.Epochs = None,
    batch_size: given.BatchSize = None,
    lr: given.Rate = None,
    seed: given.Seed = None,
    ema: given.Ema = None,
    accumulate: given.Accumulate = None,
    precision: given.Precision = None,
    clip: given.Clip = None,
    device: given.Device = None,
    save_every: given.SaveEvery = 500,
    tracker: given.TrackerName = None,
    tensorboard: given.TensorBoard = False,
) -> None:
    """Fine-tune a denoiser by ADDT: noise that hides a perturbation against a classifier.

    Starts from a trained denoiser and writes what `fastpure train denoiser` writes. --unit belongs to the
    gaussian variant, --eps to linf. One step costs five gradients with respect to the images and one ordinary
    training step.

    Example: fastpure train addt --data digits --out runs/digits-addt
    """
    from ..errors import one_of
    from ..train import FINE_TUNE_RECIPES, own_fine_tuning

    folder = out or Path("runs") / f"{data}-addt"
    recipes = FINE_TUNE_RECIPES["addt"]
    _check_networks(data, recipes.get(data), start, classifier)
    images = given.images(data, data_path, recipes, folder, size=size, key=key)
    recipe = recipes[data] if data in recipes else own_fine_tuning("addt", images[0])
    if one_of("variant", variant, ("gaussian", "linf")) == "linf":
        given.refuse("unit", unit, "--variant gaussian")
        kept = {name: value for name, value in recipe.settings.items() if name == "augment"}
        recipe = replace(recipe, loss="addt-linf", settings=kept)
        recipe = _with(recipe, **_ball(eps, steps=2))
    else:
        given.refuse("eps", eps, "--variant linf")
        recipe = _with(recipe, unit=unit)
    recipe = replace(recipe, **given.given(t_max=t_max))
    count = given.steps(steps, epochs, images[0], batch_size or recipe.train.batch_size)
    options = {"steps": count, "batch_size": batch_size, "lr": lr, "seed": seed, "ema": ema}
    train = given.configured(recipe.train, clip, accumulate=accumulate, precision=precision, **options)
    session = {"device": device, "save_every": save_every, **given.watched(tracker, tensorboard)}
    _fine_tune(replace(recipe, train=train), images, start, classifier, folder, session)


def adbm(
    data: given.Data = "digits",
    out: given.Out = None,
    data_path: given.DataPath = None,
    size: given.Size = None,
    key: given.Key = None,
    start: given.Start = None,
    classifier: given.Guide = None,
    eps: Eps = None,
    t_end_min: Annotated[
        float | None, typer.Option(help="Earliest end of the bridge. (default: 0.1)")
    ] = None,
    t_end_max: Annotated[float | None, typer.Option(help="Latest end of the bridge. (default: 0.2)")] = None,
    steps: given.Steps = None,
    epochs: given.Epochs = None,
    batch_size: given.BatchSize = None,
    lr: given.Rate = None,
    seed: given.Seed = None,
    ema: given.Ema = None,
    accumulate: given.Accumulate = None,
    precision: given.Precision = None,
    clip: given.Clip = None,
    device: given.Device = None,
    save_every: given.SaveEvery = 500,
    tracker: given.TrackerName = None,
    tensorboard: given.TensorBoard = False,
) -> None:
    """Fine-tune a denoiser by ADBM: from the diffused adversarial image back to the clean one.

    Starts from a trained denoiser with continuous times and writes what `fastpure train denoiser` writes. One
    step costs three gradients with respect to the images and one ordinary training step.

    Example: fastpure train adbm --data digits --out runs/digits-adbm
    """
    from ..train import FINE_TUNE_RECIPES, own_fine_tuning

    folder = out or Path("runs") / f"{data}-adbm"
    recipes = FINE_TUNE_RECIPES["adbm"]
    _check_networks(data, recipes.get(data), start, classifier)
    images = given.images(data, data_path, recipes, folder, size=size, key=key)
    recipe = recipes[data] if data in recipes else own_fine_tuning("adbm", images[0])
    recipe = _with(recipe, t_end_min=t_end_min, t_end_max=t_end_max, **_ball(eps, steps=1))
    count = given.steps(steps, epochs, images[0], batch_size or recipe.train.batch_size)
    options = {"steps": count, "batch_size": batch_size, "lr": lr, "seed": seed, "ema": ema}
    train = given.configured(recipe.train, clip, accumulate=accumulate, precision=precision, **options)
    session = {"device": device, "save_every": save_every, **given.watched(tracker, tensorboard)}
    _fine_tune(replace(recipe, train=train), images, start, classifier, folder, session)


def trades(
    data: given.Data = "digits",
    out: given.Out = None,
    data_path: given.DataPath = None,
    size: given.Size = None,
    key: given.Key = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Classifier to start from: a bundled name, a file, or none for random weights. (default for "
            "cifar10: the bundled one; for digits: none)"
        ),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Weight of the distance under attack. (default: 6)")
    ] = None,
    distance: Annotated[
        str | None,
        typer.Option(help="Of the logits under attack: kl (default), of their softmax, or mse."),
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="Of the perturbations: Linf (default) or L2, which needs --eps.")
    ] = None,
    eps: Annotated[float | None, typer.Option(help="Radius of the perturbations, pixels in [0, 1].")] = None,
    n_iter: Annotated[int | None, typer.Option(help="Steps of the inner attack. (default: 10)")] = None,
    inner_mode: Annotated[
        str | None,
        typer.Option(help="Batch normalisation during the inner attack: eval (default) or train."),
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
    """Train a robust classifier with TRADES, as AGDM-style guidance wants for its auxiliary network.

    AGDM is guided by a distance of logits, and its network is trained with the same one: --distance. The published
    weight 6 is that of kl. Writes what `fastpure train classifier` writes, and says the accuracy under PGD-20. The
    inner attack's step is a quarter of --eps.

    Example: fastpure train trades --data digits --out runs/digits-trades
    """
    from ..classifiers import load_classifier
    from ..norms import norm_called
    from ..train import TRADES_RECIPES, own_trades, train_classifier

    folder = out or Path("runs") / f"{data}-trades"
    images = given.images(data, data_path, TRADES_RECIPES, folder, size=size, key=key)
    recipe = TRADES_RECIPES[data] if data in TRADES_RECIPES else own_trades(images[0])
    norm = None if norm is None else norm_called("--norm", norm, ("Linf", "L2"))
    if norm == "L2" and eps is None:
        raise ValueError("`--eps` must be given with --norm L2: the data set's own is a radius in Linf")
    settings = {"beta": beta, "n_iter": n_iter, "inner_mode": inner_mode, "distance": distance, "norm": norm}
    changed = given.given(**settings, **_ball(eps, steps=4))
    count = given.steps(steps, epochs, images[0], batch_size or recipe.train.batch_size)
    options = {"steps": count, "batch_size": batch_size, "lr": lr, "seed": seed, "ema": ema}
    train = given.configured(recipe.train, clip, accumulate=accumulate, precision=precision, **options)
    loss: Any = replace(recipe.loss, **changed)
    recipe = replace(recipe, loss=loss, train=train, **given.given(network=network))
    where = given.checked_device(device)
    # Another network than the recipe's cannot begin with the recipe's weights.
    begin = start or (recipe.start if network is None else None)
    first = None if begin in (None, "none") else load_classifier(begin)
    given.announce(recipe.name, images[0].describe(), train.steps, folder)
    outcome = train_classifier(
        recipe,
        *images,
        folder,
        start=first,
        device=where,
        save_every=save_every,
        **given.watched(tracker, tensorboard),
    )
    given.report(outcome, train.steps, folder)


def _check_networks(
    data: str, recipe: FineTuneRecipe | None, start: str | None, classifier: str | None
) -> None:
    """Raise ValueError, before anything is read, if a network is neither given nor bundled for these data."""
    from ..data import OWN

    if recipe is None and data not in OWN:
        return  # no data set at all: `given.images` says which there are
    bundled = (None, None) if recipe is None else (recipe.start, recipe.classifier)
    if None in (start or bundled[0], classifier or bundled[1]):
        raise ValueError(f"for data set {data!r} nothing is bundled: give --start and --classifier")


def _fine_tune(
    recipe: FineTuneRecipe,
    images: tuple[Dataset, Dataset],
    start: str | None,
    classifier: str | None,
    folder: Path,
    session: dict[str, Any],
) -> None:
    from ..checkpoints import load_denoiser
    from ..classifiers import load_classifier
    from ..train import fine_tune

    begin, guide = str(start or recipe.start), str(classifier or recipe.classifier)
    session["device"] = given.checked_device(session["device"])
    networks = (load_denoiser(begin), load_classifier(guide))
    given.announce(
        f"denoiser {begin} against classifier {guide}", images[0].describe(), recipe.train.steps, folder
    )
    outcome = fine_tune(recipe, *networks, *images, folder, **session)
    given.report(outcome, recipe.train.steps, folder)


def _with(recipe: FineTuneRecipe, **settings: Any) -> FineTuneRecipe:
    return replace(recipe, settings={**recipe.settings, **given.given(**settings)})


def _ball(eps: float | None, steps: int) -> dict[str, float | None]:
    """Radius and step size, which keeps its proportion to the radius."""
    return {"eps": eps, "step_size": None if eps is None else eps / steps}
