"""Purifiers, the defences they are part of, and the door through which these are attacked and judged."""

from .defense import Defense
from .diffusion_classifier import DiffusionClassifier
from .entry import door, look_through
from .noised_classifier import NoisedDiffusionClassifier
from .peers import as_art_preprocessor, as_robustbench
from .purifier import Purifier
from .resized import ResizedPurifier
from .target import Target
from .tiled import TiledPurifier

__all__ = [
    "Defense",
    "DiffusionClassifier",
    "NoisedDiffusionClassifier",
    "Purifier",
    "ResizedPurifier",
    "Target",
    "TiledPurifier",
    "as_art_preprocessor",
    "as_robustbench",
    "door",
    "look_through",
]
