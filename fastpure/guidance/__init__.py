"""Gradients that steer the reverse process, each with its exact second-order term."""

from .auxiliary import AuxiliaryLatent
from .base import GRADS, VJP, Guidance, GuidanceStep, Objective
from .confidence import ClassifierConfidence
from .similarity import Attraction, SquaredError, StructuralSimilarity

GUIDANCE = {
    "confidence": ClassifierConfidence,
    "squared_error": SquaredError,
    "ssim": StructuralSimilarity,
    "auxiliary": AuxiliaryLatent,
    "attraction": Attraction,
}
"""Every guidance by name."""

__all__ = [
    "GRADS",
    "GUIDANCE",
    "VJP",
    "Attraction",
    "AuxiliaryLatent",
    "ClassifierConfidence",
    "Guidance",
    "GuidanceStep",
    "Objective",
    "SquaredError",
    "StructuralSimilarity",
]
