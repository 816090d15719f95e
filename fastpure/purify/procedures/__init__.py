"""Purification rules that do not fit a table; each walks a table's rows in its own way."""

from .adaptive import AdaptiveScore
from .likelihood import LikelihoodAscent
from .predictor_corrector import PredictorCorrector

__all__ = ["AdaptiveScore", "LikelihoodAscent", "PredictorCorrector"]
