"""The training runs behind the commands: from a recipe and data to exported, scored weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import nn

from ..attacks import PGD
from ..checkpoints import save_denoiser, save_energy
from ..classifiers import ResNet, require_eval, save_classifier
from ..data import Dataset
from ..errors import mistake
from ..files import replace_file
from ..nets import Denoiser, EnergyNet, config_dict
from ..nets.energy import CONFIGS as ENERGY_CONFIGS
from ..shown import Fields
from .config import TrainConfig
from .loop import Fit, fit
from .losses import EnergyWithChains, Loss, TradesLoss, weights_digest
from .measure import (
    DenoiserScore,
    FlowScore,
    Nothing,
    score_classifier,
    score_denoiser,
    score_energy,
    score_loss,
)
from .networks import (
    check_classes,
    check_conventions,
    check_shape,
    conventions,
    flow_network,
    new_classifier,
    new_denoiser,
)
from .recipes import ClassifierRecipe, DenoiserRecipe, EnergyRecipe, FineTuneRecipe, FlowPureRecipe
from .trainer import Group

CLASSIFIER_FILE = "classifier.safetensors"
DENOISER_FILE = "denoiser.safetensors"
ENERGY_FILE = "energy.safetensors"
# Held-out images that are denoised or attacked: enough for 0.05 dB, cheap enough for large networks.
SCORED_IMAGES = 512
SCORED_TIMES = (0.05, 0.1, 0.15, 0.2)


def train_classifier(
    recipe: ClassifierRecipe,
    train: Dataset,
    test: Dataset,
    out: str | Path,
    *,
    start: nn.Module | None = None,
    **session: Any,
) -> Outcome:
    """Train a classifier, export ``classifier.safetensors`` and score it on ``test``.

    Args:
        start: weights to begin with, a `ResNet` of the recipe's network, which stays as it is; random ones if None.
        session: ``device``, ``save_every``, ``progress``, ``tensorboard``; see `fit`. Under ``accelerate launch``
            the batch is divided over the processes, and the device is theirs.

    Raises:
        ValueError: the network does not fit the images or the number of classes, or ``start`` not the network.
        ResumeError: ``out`` holds another run (another start counts); nothing is overwritten.
    """
    config = recipe.config
    check_shape(recipe.name, config.image_shape, train)
    if config.classes != len(train.classes):
        raise ValueError(mistake("network", f"one for {len(train.classes)} classes", f"{config.classes}"))
    network = {"name": recipe.name, **config.to_dict()}
    if start is not None:
        network["start"] = weights_digest(start)
    done = _run(
        new_classifier(recipe, start),
        recipe.loss,
        train,
        recipe.train,
        out=out,
        network=network,
        held_out=lambda network: score_classifier(network, test).cross_entropy,
        products=(CLASSIFIER_FILE, RESULT_FILE),
        **session,
    )
    if not (done.finished and done.main):
        return Outcome(done, None, ())
    shown = session.get("progress", True)
    score = score_classifier(done.model, test, progress=shown)
    table = [
        f"test accuracy {100 * score.accuracy:.2f} % of {score.images} images, "
        f"cross-entropy {score.cross_entropy:.4f}"
    ]
    if isinstance(recipe.loss, TradesLoss):
        table.append(_under_attack(done.model, _held_out(test), recipe.loss, shown))
    metadata = notes(done, recipe.train, train, {"test_accuracy": f"{score.accuracy:.4f}"})
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
    model = new_denoiser(recipe, len(train.classes))
    check_shape(recipe.name, model.image_shape, train)
    check_conventions("network", model, *conventions(recipe.loss))
    held, times = _held_out(test), _times(recipe.loss.t_max)
    done = _run(
        model,
        recipe.loss,
        train,
        recipe.train,
        out=out,
        network={"name": recipe.name, **config_dict(model.network)},
        held_out=lambda network: _mean_error(score_denoiser(network, held, times)),
        products=(DENOISER_FILE, RESULT_FILE),
        **session,
    )
    if not (done.finished and done.main):
        return Outcome(done, None, ())
    metadata = notes(done, recipe.train, train, {"t_max": str(recipe.loss.t_max)})
    return _export_denoiser(done, out, held, times, metadata, progress=session.get("progress", True))


def train_energy(
    recipe: EnergyRecipe, train: Dataset, test: Dataset, out: str | Path, **session: Any
) -> Outcome:
    """Train an energy by persistent chains, export ``energy.safetensors`` and compare energies on ``test``.

    Args:
        session: as for `train_classifier`, but one process only: every process would have chains of its own.

    Raises:
        ValueError: the network does not fit the images, the chains not the batch, or several processes.
        ResumeError: ``out`` holds another run; nothing is overwritten.
    """
    if (size := Group.current().size) > 1:
        raise ValueError(mistake("accelerate launch", "one process for an energy", f"{size}"))
    config = ENERGY_CONFIGS[recipe.network]
    check_shape(recipe.network, config.image_shape, train)
    network = EnergyNet(config).initialise(recipe.train.seed)
    noise = recipe.loss.smooth or 0.25
    done = _run(
        EnergyWithChains(network, recipe.n_chains, recipe.train.seed),
        recipe.loss,
        train,
        recipe.train,
        out=out,
        network={"name": recipe.network, **config.to_dict(), "n_chains": recipe.n_chains},
        held_out=lambda model: score_energy(model, test, noise).noise_mse,
        products=(ENERGY_FILE, RESULT_FILE),
        **session,
    )
    if not (done.finished and done.main):
        return Outcome(done, None, ())
    trained = cast("EnergyWithChains", done.model)
    score = score_energy(trained.network, test, noise, progress=session.get("progress", True))
    table = (
        f"error of the noise that the gradient predicts: {score.noise_mse:.4f} at deviation {score.noise:g} "
        f"({score.images} held-out images)",
        f"noised images lie {score.higher:.2f} higher",
    )
    metadata = notes(done, recipe.train, train, {"loss": json.dumps(recipe.loss.to_dict())})
    return export(
        done,
        out,
        ENERGY_FILE,
        lambda path: save_energy(trained.network, path, notes=metadata, dtype=torch.float16),
        score,
        table,
    )


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
    check_shape("start", start.image_shape, train)
    device = _device(session.get("device"), Group.current())
    guide = copy.deepcopy(require_eval(classifier, "classifier")).requires_grad_(False).to(device)
    check_classes(guide, train, device)
    loss = recipe.make_loss(start, guide)
    levels = loss.levels
    check_conventions("start", start, levels.prediction, levels.time_input)
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
    shown = session.get("progress", True)
    before, after = (
        score_loss(model, loss, held, device, progress=shown)
        for model in (copy.deepcopy(start).to(device), done.model)
    )
    metadata = notes(
        done, recipe.train, train, {"loss": json.dumps(loss.to_dict()), "start": network["start"]}
    )
    line = f"{recipe.loss} loss on held-out images: {before:.4f} before, {after:.4f} after"
    return _export_denoiser(done, out, held, times, metadata, line, progress=shown)


def train_flowpure(
    recipe: FlowPureRecipe,
    classifier: nn.Module | None,
    train: Dataset,
    test: Dataset,
    out: str | Path,
    **session: Any,
) -> Outcome:
    """Train a network for `fastpure.methods.flowpure`, export ``denoiser.safetensors`` and score its loss on ``test``.

    Args:
        classifier: attacked in training, as for `fine_tune`; None for a Gaussian perturbation.
        session: as for `train_classifier`.

    Raises:
        ValueError: network, classifier and data do not fit each other, or a classifier is missing or superfluous.
        ResumeError: ``out`` holds another run; nothing is overwritten.
    """
    device = _device(session.get("device"), Group.current())
    guide = None
    if classifier is not None:
        guide = copy.deepcopy(require_eval(classifier, "classifier")).requires_grad_(False).to(device)
        check_classes(guide, train, device)
    loss = recipe.make_loss(guide)
    made = Denoiser.from_config(recipe.network, seed=recipe.train.seed, init_scale=0.0)
    check_shape(recipe.network, made.image_shape, train)
    held = _held_out(test)
    done = _run(
        flow_network(made, loss.path),
        loss,
        train,
        recipe.train,
        out=out,
        network={"name": recipe.network, **config_dict(made.network)},
        held_out=lambda network: score_loss(network, loss, held, device),
        products=(DENOISER_FILE, RESULT_FILE),
        **session,
    )
    if not (done.finished and done.main):
        return Outcome(done, None, ())
    shown = session.get("progress", True)
    found = score_loss(done.model, loss, held, device, progress=shown)
    score = FlowScore(found, score_loss(Nothing(), loss, held, device), len(held))
    line = f"flowpure loss on held-out images: {score.loss:.4f}, of a network that answers zero: {score.of_zero:.4f}"
    metadata = notes(done, recipe.train, train, {"loss": json.dumps(loss.to_dict())})
    return export(
        done,
        out,
        DENOISER_FILE,
        lambda path: save_denoiser(cast("Denoiser", done.model), path, notes=metadata),
        score,
        (line,),
    )


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
    progress: bool,
) -> Outcome:
    scores = score_denoiser(done.model, held, times, draws=4, progress=progress)
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


def _under_attack(model: nn.Module, test: Dataset, loss: TradesLoss, progress: bool) -> str:
    attack = PGD(norm=loss.norm, eps=loss.eps, n_iter=20, eot_iter=1)
    device = next(model.parameters()).device
    result = attack(model, test.images.to(device), test.labels.to(device), progress=progress)
    return f"under PGD-20, {loss.norm} {loss.eps:g}: {result.robust_accuracy} of {len(test)} images"


def _held_out(test: Dataset) -> Dataset:
    return test if len(test) <= SCORED_IMAGES else test.subset(SCORED_IMAGES)


def _times(t_max: float) -> tuple[float, ...]:
    return tuple(t for t in SCORED_TIMES if t <= t_max) or (t_max,)


def _mean_error(scores: tuple[DenoiserScore, ...]) -> float:
    return sum(score.noise_mse for score in scores) / len(scores)


RESULT_FILE = "result.json"


@final
@dataclass(frozen=True, repr=False)
class Outcome(Fields):
    """What a training command came to.

    Fields:
        fit: steps, seconds, whether it was resumed or interrupted, and the averaged network.
        weights: the exported file; None if the run was interrupted.
        table: the scores on held-out images, as lines of text.
    """

    fit: Fit
    weights: Path | None
    table: tuple[str, ...]


def notes(done: Fit, config: TrainConfig, dataset: Dataset, more: Mapping[str, str]) -> dict[str, str]:
    """Metadata of the exported file: data, its checksum, the optimisation, and ``more``."""
    extended = {"extended_after_steps": json.dumps(done.extended)} if done.extended else {}
    return {
        "data": f"{dataset.name}/{dataset.split} {dataset.checksum}",
        "training": json.dumps(asdict(config), sort_keys=True),
        **extended,
        **more,
    }


def export(
    done: Fit, out: str | Path, name: str, save: Callable[[Path], Any], score: Any, table: tuple[str, ...]
) -> Outcome:
    """Write the weights with ``save`` and the scores as JSON, each atomically."""
    path = Path(out) / name
    save(path)
    scores = [asdict(each) for each in score] if isinstance(score, tuple) else asdict(score)
    result = {
        "steps": done.step,
        **({"extended_after_steps": list(done.extended)} if done.extended else {}),
        "seconds": round(done.seconds, 1),
        "parameters": _parameters(done.model),
        "held_out": scores,
    }
    replace_file(Path(out) / RESULT_FILE, (json.dumps(result, indent=1) + "\n").encode())
    return Outcome(done, path, table)


def _parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
