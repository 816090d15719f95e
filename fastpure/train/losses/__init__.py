"""Losses as values: frozen dataclasses that map a network and a batch to one number per image.

A new loss is one dataclass in a file here with the same ``__call__``; the loop knows nothing else of it.
"""

from .adbm import AdbmLoss, Bridge
from .addt import AddtLinfLoss, AddtLoss, mix, rbgm
from .base import Augment, Loss, evaluation_mode, frozen_weights, weights_digest
from .classifier import ClassifierLoss, TradesLoss
from .denoiser import DenoiserLoss, DiscreteDenoiserLoss, EdmDenoiserLoss
from .energy import EnergyLoss, EnergyWithChains
from .flow import FlowLoss, FlowPureLoss, FlowTimes
from .levels import ContinuousTimes, DiscreteTimes, EdmLevels, Level, Levels, diffuse

__all__ = [
    "AdbmLoss",
    "AddtLinfLoss",
    "AddtLoss",
    "Augment",
    "Bridge",
    "ClassifierLoss",
    "ContinuousTimes",
    "DenoiserLoss",
    "DiscreteDenoiserLoss",
    "DiscreteTimes",
    "EdmDenoiserLoss",
    "EdmLevels",
    "EnergyLoss",
    "EnergyWithChains",
    "FlowLoss",
    "FlowPureLoss",
    "FlowTimes",
    "Level",
    "Levels",
    "Loss",
    "TradesLoss",
    "diffuse",
    "evaluation_mode",
    "frozen_weights",
    "mix",
    "rbgm",
    "weights_digest",
]
