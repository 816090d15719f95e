"""One row of a sampler table: the state update and its transpose."""

from fastpure.kernels.row.op import affine_row, affine_row_vjp

__all__ = ["affine_row", "affine_row_vjp"]
