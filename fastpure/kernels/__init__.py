"""The operations with more than one implementation: counter-based noise and the row update.

Each has a torch reference (the definition of truth, float64-capable), an accelerated version and a
registration as ``torch.ops.fastpure.*``. Other layers import from here only.
"""

from fastpure.kernels.catalogue import OPS, backend_report
from fastpure.kernels.cuda_support import preload
from fastpure.kernels.keys import Domain, NoiseKeys, Stream
from fastpure.kernels.noise.op import philox_normal, philox_uniform
from fastpure.kernels.registry import BACKENDS, use_backend
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
    "philox_normal",
    "philox_uniform",
    "preload",
    "use_backend",
]
