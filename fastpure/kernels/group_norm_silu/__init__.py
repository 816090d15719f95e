"""GroupNorm + SiLU (+ 2x resampling), forward and backward in the image."""

from fastpure.kernels.group_norm_silu.op import fused_on_host, group_norm_silu, group_norm_silu_vjp

__all__ = ["fused_on_host", "group_norm_silu", "group_norm_silu_vjp"]
