"""What `fastpure train` does for each data set, as values: network, loss and optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn

from ..classifiers import CONFIGS as CLASSIFIER_CONFIGS
from ..errors import one_of
from ..nets import Denoiser
from .config import TrainConfig
from .losses import (
    AdbmLoss,
    AddtLinfLoss,
    AddtLoss,
    Augment,
    ClassifierLoss,
    ContinuousTimes,
    DenoiserLoss,
    DiscreteDenoiserLoss,
    DiscreteTimes,
    EdmLevels,
    Levels,
    TradesLoss,
)

__all__ = [
    "CLASSIFIER_RECIPES",
    "DENOISER_RECIPES",
    "FINE_TUNE_RECIPES",
    "TRADES_RECIPES",
    "ClassifierRecipe",
    "DenoiserRecipe",
    "FineTuneRecipe",
]


@final
@dataclass(frozen=True)
class ClassifierRecipe:
    """``network`` is a key of `fastpure.classifiers.CONFIGS`."""

    network: str
    loss: ClassifierLoss | TradesLoss
    train: TrainConfig

    def __post_init__(self) -> None:
        one_of("network", self.network, CLASSIFIER_CONFIGS)


@final
@dataclass(frozen=True)
class DenoiserRecipe:
    """``network`` is a name that ``Denoiser.from_config`` knows."""

    network: str
    loss: DenoiserLoss | DiscreteDenoiserLoss
    train: TrainConfig

    def with_schedule(self, schedule: str) -> DenoiserRecipe:
        """The same for the "vp" (continuous) or the "discrete" schedule, up to the same time."""
        one_of("schedule", schedule, ("vp", "discrete"))
        t_max, augment = self.loss.t_max, self.loss.augment
        if schedule == "vp":
            return replace(self, loss=DenoiserLoss(t_max=t_max, augment=augment))
        return replace(self, loss=DiscreteDenoiserLoss(DiscreteTimes(t_max=t_max), augment))

    def until(self, t_max: float) -> DenoiserRecipe:
        """The same for diffusion times up to ``t_max``."""
        if isinstance(self.loss, DenoiserLoss):
            return replace(self, loss=replace(self.loss, t_max=t_max))
        return replace(self, loss=replace(self.loss, levels=replace(self.loss.levels, t_max=t_max)))


@final
@dataclass(frozen=True)
class FineTuneRecipe:
    """Fine-tuning of a trained denoiser against a classifier.

    Fields:
        loss: "addt", "addt-linf" or "adbm".
        settings: arguments of that loss, besides classifier and noise levels.
        train: optimisation.
        start, classifier: bundled names or files; None if the caller must name them.
        t_max: latest diffusion time that ADDT trains on. ADBM's range is among its settings.
    """

    loss: str
    settings: Mapping[str, Any]
    train: TrainConfig
    start: str | None = None
    classifier: str | None = None
    t_max: float = 1.0

    def __post_init__(self) -> None:
        one_of("loss", self.loss, ("addt", "addt-linf", "adbm"))

    def make_loss(self, denoiser: Denoiser, classifier: nn.Module) -> AddtLoss | AddtLinfLoss | AdbmLoss:
        """The loss, on the noise levels that suit the denoiser's time input (ADBM knows only one kind)."""
        if self.loss == "adbm":
            return AdbmLoss(classifier, **self.settings)
        levels: dict[str, Levels] = {
            "continuous": ContinuousTimes(t_max=self.t_max),
            "index": DiscreteTimes(t_max=self.t_max),
            "sigma": EdmLevels(),
        }
        kind = AddtLoss if self.loss == "addt" else AddtLinfLoss
        return kind(classifier, levels[denoiser.time_input], **self.settings)


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
        train=TrainConfig(steps=4000, batch_size=64, lr=1e-3, warmup=200, ema=0.999, precision="bf16"),
    ),
}

TRADES_RECIPES: dict[str, ClassifierRecipe] = {
    "digits": ClassifierRecipe(
        network="resnet-digits",
        loss=TradesLoss(eps=0.2, step_size=0.05, augment=Augment(shift=1)),
        train=TrainConfig(
            steps=1200, batch_size=128, optimizer="adamw", lr=3e-3, weight_decay=0.02, warmup=100, ema=0.995
        ),
    ),
    "cifar10": ClassifierRecipe(
        network="resnet-cifar10",
        loss=TradesLoss(augment=Augment(shift=4, flip=True)),
        train=TrainConfig(
            steps=39000, optimizer="sgd", lr=0.1, weight_decay=5e-4, warmup=400, ema=0.998, precision="bf16"
        ),
    ),
}

# Budgets on digits are those of the demo's attack (Linf 0.2 of [0, 1]); ADDT's unit strength grows with them.
FINE_TUNE_RECIPES: dict[str, dict[str, FineTuneRecipe]] = {
    "addt": {
        "digits": FineTuneRecipe(
            loss="addt",
            settings={"unit": 0.19, "cap": 0.8},
            train=TrainConfig(
                steps=700, batch_size=64, optimizer="adamw", lr=5e-4, weight_decay=1e-6, warmup=50, ema=0.99
            ),
            start="digits",
            classifier="digits",
            t_max=0.3,
        ),
        "cifar10": FineTuneRecipe(
            loss="addt",
            settings={"augment": Augment(flip=True)},
            train=TrainConfig(
                steps=19600,
                batch_size=256,
                optimizer="adamw",
                lr=2e-4,
                weight_decay=1e-6,
                schedule="constant",
                ema=0.9999,
            ),
        ),
    },
    "adbm": {
        "digits": FineTuneRecipe(
            loss="adbm",
            settings={"eps": 0.2, "step_size": 0.2},
            train=TrainConfig(steps=1000, batch_size=64, lr=5e-4, warmup=50, ema=0.99),
            start="digits",
            classifier="digits",
        ),
        "cifar10": FineTuneRecipe(
            loss="adbm",
            settings={"augment": Augment(flip=True)},
            train=TrainConfig(
                steps=30000, batch_size=128, lr=2e-4, warmup=5000, schedule="constant", ema=0.999
            ),
        ),
    },
}
