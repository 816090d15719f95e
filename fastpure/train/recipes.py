"""What `fastpure train` does for each data set: network, loss, optimisation, and the scores at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import nn

from ..checkpoints import save_denoiser
from ..classifiers import CONFIGS as CLASSIFIER_CONFIGS
from ..classifiers import ResNet, save_classifier
from ..data import Dataset
from ..errors import mistake, one_of
from ..nets import Denoiser, config_dict
from .config import TrainConfig
from .loop import Fit, fit
from .losses import Augment, ClassifierLoss, DenoiserLoss
from .measure import DenoiserScore, score_classifier, score_denoiser

__all__ = [
    "CLASSIFIER_RECIPES",
    "DENOISER_RECIPES",
    "ClassifierRecipe",
    "DenoiserRecipe",
    "Outcome",
    "train_classifier",
    "train_denoiser",
]

CLASSIFIER_FILE = "classifier.safetensors"
DENOISER_FILE = "denoiser.safetensors"
RESULT_FILE = "result.json"
SCORED_IMAGES = 512  # held-out images that are denoised: enough for 0.05 dB, cheap enough for large networks


@final
@dataclass(frozen=True)
class ClassifierRecipe:
    """``network`` is a key of `fastpure.classifiers.CONFIGS`."""

    network: str
    loss: ClassifierLoss
    train: TrainConfig

    def __post_init__(self) -> None:
        one_of("network", self.network, CLASSIFIER_CONFIGS)


@final
@dataclass(frozen=True)
class DenoiserRecipe:
    """``network`` is a name that ``Denoiser.from_config`` knows."""

    network: str
    loss: DenoiserLoss
    train: TrainConfig


CLASSIFIER_RECIPES: dict[str, ClassifierRecipe] = {
    "digits": ClassifierRecipe(
        network="resnet-digits",
        loss=ClassifierLoss(Augment(shift=1)),
        train=TrainConfig(
            steps=1500, batch_size=128, optimizer="adamw", lr=3e-3, weight_decay=0.02, warmup=100, ema=0.995
        ),
    ),
    "cifar10": ClassifierRecipe(
        network="resnet-cifar10-small",
        loss=ClassifierLoss(Augment(shift=4, flip=True)),
        train=TrainConfig(
            steps=4500,
            batch_size=128,
            optimizer="sgd",
            lr=0.1,
            weight_decay=5e-4,
            warmup=400,
            ema=0.998,
            precision="bf16",
        ),
    ),
}

DENOISER_RECIPES: dict[str, DenoiserRecipe] = {
    "digits": DenoiserRecipe(
        network="ddpmpp-digits",
        loss=DenoiserLoss(t_max=0.3),
        train=TrainConfig(steps=3500, batch_size=128, lr=1e-3, warmup=200, ema=0.999),
    ),
    "cifar10": DenoiserRecipe(
        network="ddpmpp-cifar10-small",
        loss=DenoiserLoss(t_max=0.3, augment=Augment(flip=True)),
        train=TrainConfig(steps=2500, batch_size=64, lr=1e-3, warmup=200, ema=0.999, precision="bf16"),
    ),
}


@final
@dataclass(frozen=True)
class Outcome:
    """What a training command came to.

    Fields:
        fit: steps, seconds, whether it was resumed or interrupted, and the averaged network.
        weights: the exported file; None if the run was interrupted.
        table: the scores on held-out images, as lines of text.
    """

    fit: Fit
    weights: Path | None
    table: tuple[str, ...]


def train_classifier(
    recipe: ClassifierRecipe,
    train: Dataset,
    test: Dataset,
    out: str | Path,
    *,
    device: str = "cpu",
    save_every: int = 500,
    progress: bool = True,
) -> Outcome:
    """Train a classifier, export ``classifier.safetensors`` and score it on ``test``.

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
    done = fit(
        model,
        recipe.loss,
        train,
        recipe.train,
        out=out,
        network={"name": recipe.network, **config.to_dict()},
        held_out=lambda network: score_classifier(network, test).cross_entropy,
        products=(CLASSIFIER_FILE, RESULT_FILE),
        device=device,
        save_every=save_every,
        progress=progress,
    )
    if not done.finished:
        return Outcome(done, None, ())
    score = score_classifier(done.model, test)
    table = (
        f"test accuracy {100 * score.accuracy:.2f} % of {score.images} images, "
        f"cross-entropy {score.cross_entropy:.4f}",
    )
    notes = _notes(recipe.train, train, {"test_accuracy": f"{score.accuracy:.4f}"})
    return _export(
        done,
        out,
        CLASSIFIER_FILE,
        lambda path: save_classifier(cast("ResNet", done.model), path, notes=notes),
        score,
        table,
    )


def train_denoiser(
    recipe: DenoiserRecipe,
    train: Dataset,
    test: Dataset,
    out: str | Path,
    *,
    device: str = "cpu",
    save_every: int = 500,
    progress: bool = True,
) -> Outcome:
    """Train a denoiser, export ``denoiser.safetensors`` and score it on (at most 512 images of) ``test``.

    Raises:
        ValueError: the network does not fit the images.
        ResumeError: ``out`` holds another run; nothing is overwritten.
    """
    model = Denoiser.from_config(recipe.network, seed=recipe.train.seed, init_scale=0.0)
    _check_shape(recipe.network, model.image_shape, train)
    held = test if len(test) <= SCORED_IMAGES else test.subset(SCORED_IMAGES)
    times = tuple(t for t in (0.05, 0.1, 0.15, 0.2) if t <= recipe.loss.t_max) or (recipe.loss.t_max,)
    done = fit(
        model,
        recipe.loss,
        train,
        recipe.train,
        out=out,
        network={"name": recipe.network, **config_dict(model.network)},
        held_out=lambda network: _mean_error(score_denoiser(network, held, times)),
        products=(DENOISER_FILE, RESULT_FILE),
        device=device,
        save_every=save_every,
        progress=progress,
    )
    if not done.finished:
        return Outcome(done, None, ())
    scores = score_denoiser(done.model, held, times, draws=4)
    table = (
        f"{'t':>5}  {'noise error':>11}  {'PSNR':>8}   ({len(held)} held-out images, 4 draws)",
        *(f"{score.t:5.2f}  {score.noise_mse:11.4f}  {score.psnr:5.2f} dB" for score in scores),
    )
    notes = _notes(recipe.train, train, {"t_max": str(recipe.loss.t_max)})
    return _export(
        done,
        out,
        DENOISER_FILE,
        lambda path: save_denoiser(cast("Denoiser", done.model), path, notes=notes),
        scores,
        table,
    )


def _mean_error(scores: tuple[DenoiserScore, ...]) -> float:
    return sum(score.noise_mse for score in scores) / len(scores)


def _check_shape(network: str, image_shape: tuple[int, ...], dataset: Dataset) -> None:
    if tuple(image_shape) != dataset.image_shape:
        raise ValueError(
            mistake(
                "network", f"one for images {dataset.image_shape}", f"{network!r} for {tuple(image_shape)}"
            )
        )


def _notes(config: TrainConfig, dataset: Dataset, more: Mapping[str, str]) -> dict[str, str]:
    return {
        "data": f"{dataset.name}/{dataset.split} {dataset.checksum}",
        "training": json.dumps(asdict(config), sort_keys=True),
        **more,
    }


def _export(
    done: Fit, out: str | Path, name: str, save: Callable[[Path], Any], score: Any, table: tuple[str, ...]
) -> Outcome:
    path = Path(out) / name
    save(path)
    scores = [asdict(each) for each in score] if isinstance(score, tuple) else asdict(score)
    result = {
        "steps": done.step,
        "seconds": round(done.seconds, 1),
        "parameters": _parameters(done.model),
        "held_out": scores,
    }
    (Path(out) / RESULT_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return Outcome(done, path, table)


def _parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
