"""The training runs behind the commands: from a recipe and data to exported, scored weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..attacks import PGD
from ..checkpoints import save_denoiser
from ..classifiers import CONFIGS as CLASSIFIER_CONFIGS
from ..classifiers import ResNet, call_frozen, require_eval, save_classifier
from ..data import Dataset
from ..errors import mistake
from ..nets import Denoiser, config_dict
from .config import TrainConfig
from .group import Group
from .loop import Fit, fit
from .losses import ContinuousTimes, DiscreteDenoiserLoss, EdmDenoiserLoss, Loss, TradesLoss, weights_digest
from .measure import DenoiserScore, score_classifier, score_denoiser, score_loss
from .outcome import RESULT_FILE, Outcome, export, notes
from .recipes import ClassifierRecipe, DenoiserRecipe, FineTuneRecipe

__all__ = ["fine_tune", "train_classifier", "train_denoiser"]

CLASSIFIER_FILE = "classifier.safetensors"
DENOISER_FILE = "denoiser.safetensors"
SCORED_IMAGES = 512  # held-out images that are denoised: enough for 0.05 dB, cheap enough for large networks
SCORED_TIMES = (0.05, 0.1, 0.15, 0.2)


def train_classifier(
    recipe: ClassifierRecipe, train: Dataset, test: Dataset, out: str | Path, **session: Any
) -> Outcome:
    """Train a classifier, export ``classifier.safetensors`` and score it on ``test``.

    Args:
        session: ``device``, ``save_every``, ``progress``, ``tensorboard``; see `fit`. Under ``accelerate launch``
            the batch is divided over the processes, and the device is theirs.

    Raises:
        ValueError: the network does not fit the images or the number of classes.
        ResumeError: ``out`` holds another run; nothing is overwritten.
    """
    config = CLASSIFIER_CONFIGS[recipe.network]
    _check_shape(recipe.network, config.image_shape, train)
    if config.classes != len(train.classes):
        raise ValueError(mistake("network", f"one for {len(train.classes)} classes", f"{config.classes}"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = ResNet(config)
    done = _run(
        model,
        recipe.loss,
        train,
        recipe.train,
        out=out,
        network={"name": recipe.network, **config.to_dict()},
        held_out=lambda network: score_classifier(network, test).cross_entropy,
        products=(CLASSIFIER_FILE, RESULT_FILE),
        **session,
    )
    if not (done.finished and done.main):
        return Outcome(done, None, ())
    score = score_classifier(done.model, test)
    table = [
        f"test accuracy {100 * score.accuracy:.2f} % of {score.images} images, "
        f"cross-entropy {score.cross_entropy:.4f}"
    ]
    if isinstance(recipe.loss, TradesLoss):
        table.append(_under_attack(done.model, test, recipe.loss.eps))
    metadata = notes(recipe.train, train, {"test_accuracy": f"{score.accuracy:.4f}"})
    return export(
        done,
        out,
        CLASSIFIER_FILE,
        lambda path: save_classifier(cast("ResNet", done.model), path, notes=metadata),
        score,
        tuple(table),
    )


def train_denoiser(
    recipe: DenoiserRecipe, train: Dataset, test: Dataset, out: str | Path, **session: Any
) -> Outcome:
    """Train a denoiser, export ``denoiser.safetensors`` and score it on (at most 512 images of) ``test``.

    Args:
        session: as for `train_classifier`.

    Raises:
        ValueError: the network does not fit the images.
        ResumeError: ``out`` holds another run; nothing is overwritten.
    """
    model = _new_denoiser(recipe)
    _check_shape(recipe.network, model.image_shape, train)
    _check_conventions("network", model, *_conventions(recipe.loss))
    held, times = _held_out(test), _times(recipe.loss.t_max)
    done = _run(
        model,
        recipe.loss,
        train,
        recipe.train,
        out=out,
        network={"name": recipe.network, **config_dict(model.network)},
        held_out=lambda network: _mean_error(score_denoiser(network, held, times)),
        products=(DENOISER_FILE, RESULT_FILE),
        **session,
    )
    if not (done.finished and done.main):
        return Outcome(done, None, ())
    metadata = notes(recipe.train, train, {"t_max": str(recipe.loss.t_max)})
    return _export_denoiser(done, out, held, times, metadata)


def fine_tune(
    recipe: FineTuneRecipe,
    start: Denoiser,
    classifier: nn.Module,
    train: Dataset,
    test: Dataset,
    out: str | Path,
    **session: Any,
) -> Outcome:
    """Fine-tune ``start`` (which stays as it is) by ADDT or ADBM, export and score as `train_denoiser` does.

    Args:
        classifier: guides the perturbations; images in [0, 1] to logits, in evaluation mode.
        session: as for `train_classifier`.

    Raises:
        ValueError: denoiser, classifier, data and loss do not fit each other; the message says which.
        TypeError: a denoiser of no known architecture, which could not be exported.
        ResumeError: ``out`` holds another run (another start or classifier counts); nothing is overwritten.
    """
    network = {"start": weights_digest(start.network), **config_dict(start.network)}
    _check_shape("start", start.image_shape, train)
    device = _device(session.get("device"), Group.current())
    guide = copy.deepcopy(require_eval(classifier, "classifier")).requires_grad_(False).to(device)
    _check_classes(guide, train, device)
    loss = recipe.make_loss(start, guide)
    levels = loss.levels
    _check_conventions("start", start, levels.prediction, levels.time_input)
    held, times = _held_out(test), _times(getattr(loss, "t_end_max", recipe.t_max))
    done = _run(
        copy.deepcopy(start).requires_grad_(True),
        loss,
        train,
        recipe.train,
        out=out,
        network=network,
        held_out=lambda tuned: score_loss(tuned, loss, held, device),
        products=(DENOISER_FILE, RESULT_FILE),
        **session,
    )
    if not (done.finished and done.main):
        return Outcome(done, None, ())
    before, after = (
        score_loss(model, loss, held, device) for model in (copy.deepcopy(start).to(device), done.model)
    )
    metadata = notes(recipe.train, train, {"loss": json.dumps(loss.to_dict()), "start": network["start"]})
    line = f"{recipe.loss} loss on held-out images: {before:.4f} before, {after:.4f} after"
    return _export_denoiser(done, out, held, times, metadata, line)


def _run(
    model: nn.Module,
    loss: Loss,
    train: Dataset,
    config: TrainConfig,
    *,
    network: Mapping[str, Any],
    held_out: Callable[[nn.Module], float],
    device: str | None = None,
    **session: Any,
) -> Fit:
    group = Group.current()
    where = _device(device, group)
    return fit(
        model,
        loss,
        train,
        config,
        network=network,
        held_out=held_out,
        device=where,
        group=group,
        **session,
    )


def _device(asked: str | None, group: Group) -> torch.device:
    return group.device if group.device is not None else torch.device(asked or "cpu")


def _export_denoiser(
    done: Fit,
    out: str | Path,
    held: Dataset,
    times: tuple[float, ...],
    metadata: dict[str, str],
    *lines: str,
) -> Outcome:
    scores = score_denoiser(done.model, held, times, draws=4)
    table = (
        *lines,
        f"{'t':>5}  {'noise error':>11}  {'PSNR':>8}   ({len(held)} held-out images, 4 draws)",
        *(f"{score.t:5.2f}  {score.noise_mse:11.4f}  {score.psnr:5.2f} dB" for score in scores),
    )
    return export(
        done,
        out,
        DENOISER_FILE,
        lambda path: save_denoiser(cast("Denoiser", done.model), path, notes=metadata),
        scores,
        table,
    )


def _under_attack(model: nn.Module, test: Dataset, eps: float) -> str:
    attack = PGD(norm="Linf", eps=eps, n_iter=20, eot_iter=1)
    device = next(model.parameters()).device
    result = attack(model, test.images.to(device), test.labels.to(device))
    return f"under PGD-20, Linf {eps:g}: {result.robust_accuracy}"


def _held_out(test: Dataset) -> Dataset:
    return test if len(test) <= SCORED_IMAGES else test.subset(SCORED_IMAGES)


def _times(t_max: float) -> tuple[float, ...]:
    return tuple(t for t in SCORED_TIMES if t <= t_max) or (t_max,)


def _mean_error(scores: tuple[DenoiserScore, ...]) -> float:
    return sum(score.noise_mse for score in scores) / len(scores)


def _check_shape(network: str, image_shape: tuple[int, ...], dataset: Dataset) -> None:
    if tuple(image_shape) != dataset.image_shape:
        raise ValueError(
            mistake(
                "network", f"one for images {dataset.image_shape}", f"{network!r} for {tuple(image_shape)}"
            )
        )


def _new_denoiser(recipe: DenoiserRecipe) -> Denoiser:
    """The recipe's network as the loss wants it: told times, indices, or noise levels (EDM's preconditioning)."""
    seed = recipe.train.seed
    model = Denoiser.from_config(recipe.network, seed=seed, init_scale=0.0)
    if isinstance(recipe.loss, DiscreteDenoiserLoss):
        return Denoiser.from_module(model.network, "eps", "index", model.image_shape)
    if isinstance(recipe.loss, EdmDenoiserLoss) and model.time_input != "sigma":
        wrapped = {"architecture": "edm", "network": config_dict(model.network)}
        return Denoiser.from_config(wrapped, seed=seed, init_scale=0.0)
    return model


def _conventions(loss: Loss) -> tuple[str, str]:
    levels = loss.levels if isinstance(loss, DiscreteDenoiserLoss | EdmDenoiserLoss) else ContinuousTimes()
    return levels.prediction, levels.time_input


def _check_conventions(argument: str, denoiser: Denoiser, prediction: str, time_input: str) -> None:
    """Raise ValueError unless the loss trains denoisers of this kind."""
    found = (denoiser.prediction, denoiser.time_input, getattr(denoiser, "schedule", "linear"))
    if found != (prediction, time_input, "linear") or denoiser.learned_sigma:
        expected = f"a denoiser that predicts {prediction!r} with time input {time_input!r}, linear schedule"
        learned = " and a learned variance" if denoiser.learned_sigma else ""
        raise ValueError(mistake(argument, expected, f"{found[0]!r} with {found[1]!r}, {found[2]}{learned}"))


def _check_classes(classifier: nn.Module, dataset: Dataset, device: torch.device) -> None:
    image = dataset.batch(torch.arange(1)).to(device)
    expected = f"one for images {dataset.image_shape} and {len(dataset.classes)} classes"
    # Pooling networks take images of any size, and grey ones broadcast to colour: ask those that know their own.
    made_for = getattr(getattr(classifier, "config", None), "image_shape", dataset.image_shape)
    if tuple(made_for) != dataset.image_shape:
        raise ValueError(mistake("classifier", expected, f"one for images {tuple(made_for)}"))
    try:
        with torch.no_grad():
            logits = call_frozen(classifier, image)
    except RuntimeError as error:
        raise ValueError(mistake("classifier", expected, f"one that cannot take them: {error}")) from error
    if tuple(logits.shape) != (1, len(dataset.classes)):
        raise ValueError(mistake("classifier", expected, f"logits of shape {list(logits.shape)}"))
