"""GroupNorm + SiLU (+ 2x resampling), forward and backward in the image."""

from fastpure.kernels.group_norm_silu.op import group_norm_silu, group_norm_silu_vjp

__all__ = ["group_norm_silu", "group_norm_silu_vjp"]
