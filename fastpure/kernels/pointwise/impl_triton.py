"""Resampling and the end of a residual block by Triton kernels."""

from __future__ import annotations

import functools
import math
from typing import Any

from .. import triton_support
from ..triton_support import ACCESS, Launch, flat_tile, free_tile


def resample(args: Any) -> None:
    """Write ``out``; ``args`` as in the schema."""
    x, out, spread = args.x, args.out, args.spread
    batch, channels, height, width = (x if spread else out).shape
    architecture = triton_support.architecture(x.device)
    launch = resample_launch(architecture, channels, height, width, x.element_size(), spread, args.scale)
    triton_support.run([launch], batch, {"x_ptr": x, "out_ptr": out}, x.device)


@functools.cache
def resample_launch(
    architecture: int, channels: int, height: int, width: int, itemsize: int, spread: bool, scale: float
) -> Launch:
    """Tiles of the smaller image, height x width: each is read once and written four times, or the other way."""
    from . import triton_programs as programs

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


def residual_add(args: Any) -> None:
    """Write ``out``; ``args`` as in the schema."""
    a, bias = args.a, args.bias
    batch, channels, height, width = a.shape
    architecture = triton_support.architecture(a.device)
    launch = residual_launch(
        architecture, channels, height * width, a.element_size(), args.scale, bias is not None
    )
    tensors = {"a_ptr": a, "b_ptr": args.b, "out_ptr": args.out}
    if bias is not None:
        tensors["bias_ptr"] = bias
    triton_support.run([launch], batch, tensors, a.device)


@functools.cache
def residual_launch(
    architecture: int, channels: int, pixels: int, itemsize: int, scale: float, with_bias: bool
) -> Launch:
    """One pass: two tensors read, one written."""
    from . import triton_programs as programs

    tile = flat_tile(architecture, "residual", itemsize)
    size = channels * pixels
    return Launch(
        programs.add,
        -(-size // tile.channels),
        ("a_ptr", "b_ptr", "bias_ptr", "out_ptr"),
        {"SCALE": scale, "C": channels, "SIZE": size, "K": tile.channels},
        tile,
        2,
        1,
        math.gcd(ACCESS, itemsize * size, itemsize * (channels if with_bias else size)),
    )
