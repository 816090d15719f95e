"""fastpure: diffusion-based adversarial purification, exact and fast.

>>> import fastpure as fp
>>> denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
>>> purifier = fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.15, dt=0.01))
>>> defense = fp.Defense(purifier, classifier)
"""

from . import attacks as attacks
from . import methods as methods
from .anomaly import AnomalyDetector as AnomalyDetector
from .checkpoints import load_denoiser as load_denoiser
from .classifiers import load_classifier as load_classifier
from .evaluate import Report as Report
from .evaluate import Run as Run
from .evaluate import compare_runs as compare
from .evaluate import controls as controls
from .evaluate import evaluate as evaluate
from .evaluate import merge as merge
from .evaluate import plan as plan
from .evaluate import protocol as protocols
from .nets import Denoiser as Denoiser
from .presets import PRESETS as presets
from .purify import Defense as Defense
from .purify import Purifier as Purifier
from .reverse import Executor as Executor
from .reverse import RecordedNoise as RecordedNoise
from .version import __version__ as __version__

__all__ = [
    "AnomalyDetector",
    "Defense",
    "Denoiser",
    "Executor",
    "Purifier",
    "RecordedNoise",
    "Report",
    "Run",
    "attacks",
    "compare",
    "controls",
    "evaluate",
    "load_classifier",
    "load_denoiser",
    "merge",
    "methods",
    "plan",
    "presets",
    "protocols",
]
