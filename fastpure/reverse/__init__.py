"""The reverse process: one loop, one exact adjoint, for every solver and guidance."""

from .adjoint import Call, reverse, states
from .memory import MemoryPlan
from .noise import GeneratedNoise, NoiseSource, RecordedNoise, SplitNoise
from .procedure import Procedure
from .step import Process

__all__ = [
    "Call",
    "GeneratedNoise",
    "MemoryPlan",
    "NoiseSource",
    "Procedure",
    "Process",
    "RecordedNoise",
    "SplitNoise",
    "reverse",
    "states",
]
