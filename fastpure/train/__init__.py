"""Training: one loop, losses as values, runs that continue bit for bit."""

from .batches import Batch, StepRandom
from .config import TrainConfig
from .loop import Fit, fit
from .losses import Augment, ClassifierLoss, DenoiserLoss, Loss
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
    "Augment",
    "Batch",
    "ClassifierLoss",
    "ClassifierRecipe",
    "ClassifierScore",
    "DenoiserLoss",
    "DenoiserRecipe",
    "DenoiserScore",
    "Fit",
    "Loss",
    "Outcome",
    "StepRandom",
    "TrainConfig",
    "Trainer",
    "fit",
    "score_classifier",
    "score_denoiser",
    "train_classifier",
    "train_denoiser",
]
