"""Counter-based noise (Philox4x32-10)."""

from fastpure.kernels.noise.op import philox_normal, philox_uniform

__all__ = ["philox_normal", "philox_uniform"]
