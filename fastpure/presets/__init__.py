"""Published configurations as data: ``fastpure.presets["coup-cifar10-linf"]``. Printing one shows all of it."""

from . import coup, diffpure, guided, newer, retrained
from .parts import (
    TAGS,
    AttackSpec,
    ClassifierSpec,
    DataSpec,
    DenoiserSpec,
    MethodSpec,
    ProtocolSpec,
    Published,
)
from .preset import Preset, Presets, UnknownPreset

PRESETS = Presets((*coup.PRESETS, *diffpure.PRESETS, *guided.PRESETS, *retrained.PRESETS, *newer.PRESETS))
"""Every preset by name."""

__all__ = [
    "PRESETS",
    "TAGS",
    "AttackSpec",
    "ClassifierSpec",
    "DataSpec",
    "DenoiserSpec",
    "MethodSpec",
    "Preset",
    "Presets",
    "ProtocolSpec",
    "Published",
    "UnknownPreset",
]
