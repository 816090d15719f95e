"""The reverse process: one loop, one exact adjoint, for every solver and guidance."""

from .adjoint import Call, reverse, states
from .graphs import GraphLimits, Graphs
from .memory import MemoryPlan
from .noise import GeneratedNoise, NoiseSource, RecordedNoise, SplitNoise
from .procedure import Procedure
from .recorder import Execution, check_backend, planned
from .step import Process

__all__ = [
    "Call",
    "Execution",
    "GeneratedNoise",
    "GraphLimits",
    "Graphs",
    "MemoryPlan",
    "NoiseSource",
    "Procedure",
    "Process",
    "RecordedNoise",
    "SplitNoise",
    "check_backend",
    "planned",
    "reverse",
    "states",
]
