"""fastpure: diffusion-based adversarial purification, exact and fast.

>>> import fastpure as fp
>>> denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
>>> purifier = fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.15, dt=0.01))
>>> defense = fp.Defense(purifier, classifier)

Each name is imported when it is first used, so that importing the package takes no time and the command line can say
how torch's threads wait before torch is loaded.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .readers import READERS as _READERS

if TYPE_CHECKING:
    from . import attacks as attacks
    from . import diagnostics as diagnostics
    from . import methods as methods
    from .anomaly import AnomalyDetector as AnomalyDetector
    from .checkpoints import load_denoiser as load_denoiser
    from .checkpoints import load_energy as load_energy
    from .classifiers import Normalised as Normalised
    from .classifiers import load_classifier as load_classifier
    from .evaluate import Report as Report
    from .evaluate import Run as Run
    from .evaluate import compare_runs as compare
    from .evaluate import controls as controls
    from .evaluate import evaluate as evaluate
    from .evaluate import merge as merge
    from .evaluate import protocol as protocols
    from .evaluate.plan import plan as plan
    from .nets import Denoiser as Denoiser
    from .presets import PRESETS as presets
    from .purify import Defense as Defense
    from .purify import DiffusionClassifier as DiffusionClassifier
    from .purify import NoisedDiffusionClassifier as NoisedDiffusionClassifier
    from .purify import Purifier as Purifier
    from .purify.files import purify_files as purify_files
    from .reverse import Executor as Executor
    from .reverse import RecordedNoise as RecordedNoise
    from .version import __version__ as __version__

__all__ = [
    "AnomalyDetector",
    "Defense",
    "Denoiser",
    "DiffusionClassifier",
    "Executor",
    "NoisedDiffusionClassifier",
    "Normalised",
    "Purifier",
    "RecordedNoise",
    "Report",
    "Run",
    "attacks",
    "compare",
    "controls",
    "diagnostics",
    "evaluate",
    "load_classifier",
    "load_denoiser",
    "load_energy",
    "merge",
    "methods",
    "plan",
    "presets",
    "protocols",
    "purify_files",
]

_PLACES = {
    "AnomalyDetector": ("anomaly", "AnomalyDetector"),
    "Defense": ("purify", "Defense"),
    "Denoiser": ("nets", "Denoiser"),
    "DiffusionClassifier": ("purify", "DiffusionClassifier"),
    "Executor": ("reverse", "Executor"),
    "NoisedDiffusionClassifier": ("purify", "NoisedDiffusionClassifier"),
    "Normalised": ("classifiers", "Normalised"),
    "Purifier": ("purify", "Purifier"),
    "RecordedNoise": ("reverse", "RecordedNoise"),
    "Report": ("evaluate", "Report"),
    "Run": ("evaluate", "Run"),
    "__version__": ("version", "__version__"),
    "compare": ("evaluate", "compare_runs"),
    "controls": ("evaluate", "controls"),
    "evaluate": ("evaluate", "evaluate"),
    "load_classifier": ("classifiers", "load_classifier"),
    "load_denoiser": ("checkpoints", "load_denoiser"),
    "load_energy": ("checkpoints", "load_energy"),
    "merge": ("evaluate", "merge"),
    "plan": ("evaluate", "plan"),
    "presets": ("presets", "PRESETS"),
    "protocols": ("evaluate", "protocol"),
    "purify_files": ("purify.files", "purify_files"),
}
"""Public name -> (package, name there). A test holds it against the imports above, which type checkers read."""


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        package, there = _PLACES[name]
        value = getattr(importlib.import_module(f"{__name__}.{package}"), there)
        sys.modules[__name__].__dict__[name] = value
        return value
    full = f"{__name__}.{name}"
    if not name.startswith("_"):
        try:
            return importlib.import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:
                raise
    from .words import no_attribute

    raise no_attribute(__name__, name, __all__)


_READERS["run"] = lambda path: __getattr__("Run").open(path)
_READERS["robustbench"] = lambda *name, **options: __getattr__("classifiers").load_robustbench(
    *name, **options
)
_READERS["unet2d"] = lambda *unet, **options: __getattr__("checkpoints").from_unet2d(*unet, **options)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PLACES})


class _Face(ModuleType):
    # Importing a subpackage binds its name here. Two public names are called like the package that they come from.
    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType) and value.__name__ == f"{__name__}.{name}"):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
