"""Anomaly detection with a diffusion model, an attack on it, and what smoothing it certifies."""

from .attack import AnomalyAttack, AnomalyAttackResult, Scorer, mean_score
from .detector import AnomalyDetector
from .smoothing import ScoreCertificates, ScoreSmoothing

__all__ = [
    "AnomalyAttack",
    "AnomalyAttackResult",
    "AnomalyDetector",
    "ScoreCertificates",
    "ScoreSmoothing",
    "Scorer",
    "mean_score",
]
