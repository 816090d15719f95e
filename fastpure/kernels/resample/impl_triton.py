"""Resampling by Triton kernels."""

from __future__ import annotations

import functools
import math

from torch import Tensor

from fastpure.kernels import triton_support
from fastpure.kernels.triton_configs import ACCESS, free_tile
from fastpure.kernels.triton_support import Launch


def resample(x: Tensor, spread: bool, scale: float, out: Tensor) -> None:
    """Write ``out``; arguments as in the schema of the operation."""
    batch, channels, height, width = (x if spread else out).shape
    architecture = triton_support.architecture(x.device)
    launch = launch_of(architecture, channels, height, width, x.element_size(), spread, scale)
    triton_support.run([launch], batch, {"x_ptr": x, "out_ptr": out}, x.device)


@functools.cache
def launch_of(
    architecture: int, channels: int, height: int, width: int, itemsize: int, spread: bool, scale: float
) -> Launch:
    """Tiles of the smaller image, height x width: each is read once and written four times, or the other way."""
    from fastpure.kernels.resample import triton_programs as programs

    size = height * width
    tile = free_tile(architecture, "resample", size, channels, itemsize)
    constants = {"SCALE": scale, "C": channels, "SIZE": size, "W": width}
    return Launch(
        programs.spread if spread else programs.gather,
        -(-size // tile.pixels) * -(-channels // tile.channels),
        ("x_ptr", "out_ptr"),
        constants | {"P": tile.pixels, "K": tile.channels},
        tile,
        1 if spread else 4,
        4 if spread else 1,
        math.gcd(ACCESS, channels * itemsize, tile.channels * itemsize),
    )
