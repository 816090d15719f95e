"""Anomaly detection with a diffusion model, and an attack on it."""

from .attack import AnomalyAttack, AnomalyAttackResult, Scorer, mean_score
from .detector import AnomalyDetector

__all__ = ["AnomalyAttack", "AnomalyAttackResult", "AnomalyDetector", "Scorer", "mean_score"]
