"""Training: one loop, losses as values, runs that continue bit for bit."""

from .batches import Batch, StepRandom
from .config import TrainConfig
from .loop import Fit, fit
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
    EdmDenoiserLoss,
    EdmLevels,
    Loss,
    TradesLoss,
)
from .measure import ClassifierScore, DenoiserScore, score_classifier, score_denoiser
from .recipes import (
    CLASSIFIER_RECIPES,
    DENOISER_RECIPES,
    ClassifierRecipe,
    DenoiserRecipe,
    Outcome,
    train_classifier,
    train_denoiser,
)
from .trainer import Trainer

__all__ = [
    "CLASSIFIER_RECIPES",
    "DENOISER_RECIPES",
    "AdbmLoss",
    "AddtLinfLoss",
    "AddtLoss",
    "Augment",
    "Batch",
    "ClassifierLoss",
    "ClassifierRecipe",
    "ClassifierScore",
    "ContinuousTimes",
    "DenoiserLoss",
    "DenoiserRecipe",
    "DenoiserScore",
    "DiscreteDenoiserLoss",
    "DiscreteTimes",
    "EdmDenoiserLoss",
    "EdmLevels",
    "Fit",
    "Loss",
    "Outcome",
    "StepRandom",
    "TradesLoss",
    "TrainConfig",
    "Trainer",
    "fit",
    "score_classifier",
    "score_denoiser",
    "train_classifier",
    "train_denoiser",
]
