"""Nearest-neighbour doubling and 2x2 mean of images, and their transposes."""

from fastpure.kernels.resample.op import resample, resample_vjp

__all__ = ["resample", "resample_vjp"]
