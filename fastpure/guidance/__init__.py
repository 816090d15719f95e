"""Gradients that steer the reverse process, each with its exact second-order term."""

from .base import Guidance, GuidanceStep
from .confidence import ClassifierConfidence

GUIDANCE = {
    "confidence": ClassifierConfidence,
}
"""Every guidance by name."""

__all__ = ["GUIDANCE", "ClassifierConfidence", "Guidance", "GuidanceStep"]
