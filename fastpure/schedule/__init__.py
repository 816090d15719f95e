"""Noise schedules and solvers as float64 tables: numpy only, no torch."""

from .edm import consistency_steps, edm, karras_grid
from .flow import rectified_flow, straight_path
from .solvers import (
    ancestral,
    dpm_solver_pp,
    dpm_solver_strided,
    exponential_sde,
    forward_diffusion,
    guidance_variances,
    langevin,
    predictor_corrector,
    probability_flow,
    reverse_sde,
    strided,
    variance_range,
)
from .table import KERNEL_COLUMNS, KERNEL_WIDTH, Row, StepTable
from .vp import VP, CosineVP, DiscreteVP, IndexedSchedule, SampledVP

__all__ = [
    "KERNEL_COLUMNS",
    "KERNEL_WIDTH",
    "VP",
    "CosineVP",
    "DiscreteVP",
    "IndexedSchedule",
    "Row",
    "SampledVP",
    "StepTable",
    "ancestral",
    "consistency_steps",
    "dpm_solver_pp",
    "dpm_solver_strided",
    "edm",
    "exponential_sde",
    "forward_diffusion",
    "guidance_variances",
    "karras_grid",
    "langevin",
    "predictor_corrector",
    "probability_flow",
    "rectified_flow",
    "reverse_sde",
    "straight_path",
    "strided",
    "variance_range",
]
