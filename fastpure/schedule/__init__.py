"""Noise schedules and solvers as float64 tables: numpy only, no torch."""

from .solvers import (
    SOLVERS,
    ancestral,
    dpm_solver_pp,
    forward_diffusion,
    probability_flow,
    reverse_sde,
    strided,
)
from .table import KERNEL_COLUMNS, KERNEL_WIDTH, Row, StepTable
from .vp import VP, DiscreteVP

__all__ = [
    "KERNEL_COLUMNS",
    "KERNEL_WIDTH",
    "SOLVERS",
    "VP",
    "DiscreteVP",
    "Row",
    "StepTable",
    "ancestral",
    "dpm_solver_pp",
    "forward_diffusion",
    "probability_flow",
    "reverse_sde",
    "strided",
]
