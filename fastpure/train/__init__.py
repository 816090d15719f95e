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
from .measure import ClassifierScore, DenoiserScore, score_classifier, score_denoiser, score_loss
from .recipes import (
    CLASSIFIER_RECIPES,
    DENOISER_RECIPES,
    FINE_TUNE_RECIPES,
    TRADES_RECIPES,
    ClassifierRecipe,
    DenoiserRecipe,
    FineTuneRecipe,
)
from .runs import Outcome, fine_tune, train_classifier, train_denoiser
from .trainer import Group, Trainer

__all__ = [
    "CLASSIFIER_RECIPES",
    "DENOISER_RECIPES",
    "FINE_TUNE_RECIPES",
    "TRADES_RECIPES",
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
    "FineTuneRecipe",
    "Fit",
    "Group",
    "Loss",
    "Outcome",
    "StepRandom",
    "TradesLoss",
    "TrainConfig",
    "Trainer",
    "fine_tune",
    "fit",
    "score_classifier",
    "score_denoiser",
    "score_loss",
    "train_classifier",
    "train_denoiser",
]
