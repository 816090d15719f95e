"""The end of a residual block: two branches and a bias added, times a constant."""

from fastpure.kernels.residual.op import residual_add

__all__ = ["residual_add"]
