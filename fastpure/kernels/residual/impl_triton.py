"""The end of a residual block by a Triton kernel."""

from __future__ import annotations

import functools
import math

from torch import Tensor

from fastpure.kernels import triton_support
from fastpure.kernels.triton_configs import ACCESS, flat_tile
from fastpure.kernels.triton_support import Launch


def residual_add(a: Tensor, b: Tensor, bias: Tensor | None, scale: float, out: Tensor) -> None:
    """Write ``out``; arguments as in the schema of the operation."""
    batch, channels, height, width = a.shape
    architecture = triton_support.architecture(a.device)
    launch = launch_of(architecture, channels, height * width, a.element_size(), scale, bias is not None)
    tensors = {"a_ptr": a, "b_ptr": b, "out_ptr": out}
    if bias is not None:
        tensors["bias_ptr"] = bias
    triton_support.run([launch], batch, tensors, a.device)


@functools.cache
def launch_of(
    architecture: int, channels: int, pixels: int, itemsize: int, scale: float, with_bias: bool
) -> Launch:
    """One pass: two tensors read, one written."""
    from fastpure.kernels.residual import triton_programs

    tile = flat_tile(architecture, "residual", itemsize)
    size = channels * pixels
    return Launch(
        triton_programs.add,
        -(-size // tile.channels),
        ("a_ptr", "b_ptr", "bias_ptr", "out_ptr"),
        {"SCALE": scale, "C": channels, "SIZE": size, "K": tile.channels},
        tile,
        2,
        1,
        math.gcd(ACCESS, itemsize * size, itemsize * (channels if with_bias else size)),
    )
