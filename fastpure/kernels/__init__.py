"""The operations with more than one implementation: noise, the row update, and a network's memory-bound parts.

Each has a torch reference (the definition of truth, float64-capable), an accelerated version and a
registration as ``torch.ops.fastpure.*``. Other layers import from here only.
"""

from fastpure.kernels.catalogue import OPS, backend_report, serves
from fastpure.kernels.cuda_support import preload
from fastpure.kernels.group_norm_silu.op import group_norm_silu, group_norm_silu_vjp
from fastpure.kernels.keys import Domain, NoiseKeys, Stream
from fastpure.kernels.noise.op import philox_normal, philox_uniform
from fastpure.kernels.registry import BACKENDS, forced_backend, use_backend
from fastpure.kernels.resample.op import resample, resample_vjp
from fastpure.kernels.residual.op import residual_add
from fastpure.kernels.row.op import affine_row, affine_row_vjp

__all__ = [
    "BACKENDS",
    "OPS",
    "Domain",
    "NoiseKeys",
    "Stream",
    "affine_row",
    "affine_row_vjp",
    "backend_report",
    "forced_backend",
    "group_norm_silu",
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
