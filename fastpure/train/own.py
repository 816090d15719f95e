"""Recipes for data of one's own: a network made for its size and classes, optimised as the bundled ones were."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..classifiers import ResNetConfig
from ..data import Dataset
from ..errors import mistake, whole
from .config import TrainConfig
from .losses import Augment, ClassifierLoss, DenoiserLoss, TradesLoss
from .recipes import FINE_TUNE_RECIPES, ClassifierRecipe, DenoiserRecipe, FineTuneRecipe

_SMALLEST = 4
"""Pixels of the coarsest level of a network."""

_LEVELS = 6
"""Most levels of a network."""


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Optimiser steps in which every image is seen ``epochs`` times, rounded up.

    Raises:
        ValueError: not a finite number above 0.
    """
    if not 0 < epochs < math.inf:
        raise ValueError(mistake("epochs", "a finite number above 0", epochs))
    return max(1, math.ceil(epochs * whole("images", images, 1) / whole("batch_size", batch_size, 1)))


def own_classifier(data: Dataset) -> ClassifierRecipe:
    """A residual network for the images, trained with shifts; mirrored pictures too where they are photographs of
    ImageNet's kind."""
    return ClassifierRecipe(
        network=_resnet(data),
        loss=ClassifierLoss(_augment(data)),
        train=TrainConfig(
            steps=9000, batch_size=128, optimizer="sgd", lr=0.1, weight_decay=5e-4, warmup=400, ema=0.998
        ),
    )


def own_trades(data: Dataset) -> ClassifierRecipe:
    """The same network, trained against attacks of Linf 8/255 in 10 steps."""
    return replace(
        own_classifier(data),
        loss=TradesLoss(eps=8 / 255, step_size=2 / 255, augment=_augment(data)),
        train=TrainConfig(
            steps=9000, batch_size=128, optimizer="sgd", lr=0.05, weight_decay=5e-4, warmup=400, ema=0.998
        ),
    )


def own_denoiser(data: Dataset) -> DenoiserRecipe:
    """A DDPM++ with as many levels as the size allows.

    Raises:
        ValueError: the images are not square.
    """
    return DenoiserRecipe(
        network=_ddpmpp(data),
        loss=DenoiserLoss(t_max=0.3, augment=Augment(flip=_mirrored(data))),
        train=TrainConfig(steps=20000, batch_size=64, lr=5e-4, warmup=500, ema=0.999),
    )


def own_fine_tuning(loss: str, data: Dataset) -> FineTuneRecipe:
    """CIFAR-10's recipe for "addt" or "adbm", without networks to start from: the caller names them."""
    recipe = FINE_TUNE_RECIPES[loss]["cifar10"]
    settings = {**recipe.settings, "augment": Augment(flip=_mirrored(data))}
    return replace(recipe, settings=settings, start=None, classifier=None)


def _mirrored(data: Dataset) -> bool:
    return data.name == "imagenet"


def _augment(data: Dataset) -> Augment:
    return Augment(shift=max(1, min(data.image_shape[1:]) // 8), flip=_mirrored(data))


def _resnet(data: Dataset) -> ResNetConfig:
    channels, height, width = data.image_shape
    if len(data.classes) < 2:
        raise ValueError(mistake("data", "of at least two classes", len(data.classes)))
    levels = 1
    while min(height, width) >> levels >= _SMALLEST and levels < _LEVELS:
        levels += 1
    half = (0.5,) * channels
    widths = tuple(min(32 * 2**level, 256) for level in range(levels))
    return ResNetConfig((channels, height, width), len(data.classes), widths, blocks=2, mean=half, std=half)


def _ddpmpp(data: Dataset) -> dict[str, Any]:
    channels, height, width = data.image_shape
    if height != width:
        remedy = "Cut them to squares, for folders with --size"
        raise ValueError(mistake("data", "of square images for a denoiser", f"{height}x{width}", remedy))
    sizes = [height]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= _SMALLEST and len(sizes) < _LEVELS:
        sizes.append(sizes[-1] // 2)
    attention = [size for size in sizes if size <= max(8, sizes[-1])][:1]
    return {
        "architecture": "ddpmpp",
        "image_size": height,
        "channels": channels,
        "nf": 32 if height <= 32 else 64,
        "ch_mult": tuple(1 if level == 0 else 2 for level in range(len(sizes))),
        "n_blocks": 1 if height <= 32 else 2,
        "attn_resolutions": tuple(attention),
        "dropout": 0.0,
    }
