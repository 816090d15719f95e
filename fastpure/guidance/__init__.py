"""Gradients that steer the reverse process, each with its exact second-order term."""

from .auxiliary import AuxiliaryLatent
from .base import GRADS, VJP, Guidance, GuidanceStep, Objective, Opening
from .clean import CleanDistance
from .confidence import ClassifierConfidence
from .energy import EnergyDescent
from .frequency import FrequencyCorrection
from .masked import Heterogeneous
from .prediction import CleanPull, Correction, JointVJP, PredictionGuidance
from .similarity import Attraction, SquaredError, StructuralSimilarity

GUIDANCE = {
    "confidence": ClassifierConfidence,
    "squared_error": SquaredError,
    "ssim": StructuralSimilarity,
    "auxiliary": AuxiliaryLatent,
    "attraction": Attraction,
    "clean_distance": CleanDistance,
    "frequency": FrequencyCorrection,
    "energy": EnergyDescent,
    "heterogeneous": Heterogeneous,
}
"""Every guidance by name."""

__all__ = [
    "GRADS",
    "GUIDANCE",
    "VJP",
    "Attraction",
    "AuxiliaryLatent",
    "ClassifierConfidence",
    "CleanDistance",
    "CleanPull",
    "Correction",
    "EnergyDescent",
    "FrequencyCorrection",
    "Guidance",
    "GuidanceStep",
    "Heterogeneous",
    "JointVJP",
    "Objective",
    "Opening",
    "PredictionGuidance",
    "SquaredError",
    "StructuralSimilarity",
]
