"""The operations with more than one implementation: noise, the row update, and a network's memory-bound parts.

Each has a torch reference (the definition of truth, float64-capable), an accelerated version and a
registration as ``torch.ops.fastpure.*``. Other layers import from here only.
"""

from .checks import carries_derivatives
from .extension import preload
from .group_norm_silu.op import (
    RESAMPLE_CODES,
    fused_on_host,
    group_norm_silu,
    group_norm_silu_of_sum,
    group_norm_silu_vjp,
)
from .keys import Domain, NoiseKeys, Stream
from .noise.op import philox_normal, philox_uniform
from .pointwise.op import resample, resample_vjp, residual_add
from .registry import BACKENDS, OPS, backend_report, forced_backend, serves, use_backend
from .row.op import affine_row, affine_row_vjp

__all__ = [
    "BACKENDS",
    "OPS",
    "RESAMPLE_CODES",
    "Domain",
    "NoiseKeys",
    "Stream",
    "affine_row",
    "affine_row_vjp",
    "backend_report",
    "carries_derivatives",
    "forced_backend",
    "fused_on_host",
    "group_norm_silu",
    "group_norm_silu_of_sum",
    "group_norm_silu_vjp",
    "philox_normal",
    "philox_uniform",
    "preload",
    "resample",
    "resample_vjp",
    "residual_add",
    "serves",
    "use_backend",
]
