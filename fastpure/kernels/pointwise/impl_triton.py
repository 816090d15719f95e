"""Resampling and the end of a residual block by Triton kernels."""

from __future__ import annotations

import functools
import math
from typing import Any

from .. import triton_support
from ..triton_support import ACCESS, Launch, Runner, flat_tile, free_tile


def resample(args: Any) -> Runner:
    """What writes ``out`` for such arguments; ``args`` as in the schema."""
    x, out, spread = args.x, args.out, args.spread
    _, channels, height, width = (x if spread else out).shape
    architecture = triton_support.architecture(x.device)
    launch = resample_launch(architecture, channels, height, width, x.element_size(), spread, args.scale)
    return Runner([launch], args)


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
        {"x_ptr": "x", "out_ptr": "out"},
        constants | {"P": tile.pixels, "K": tile.channels},
        tile,
        1 if spread else 4,
        4 if spread else 1,
        math.gcd(ACCESS, channels * itemsize, tile.channels * itemsize),
    )


def residual_add(args: Any) -> Runner:
    """What writes ``out`` for such arguments; ``args`` as in the schema."""
    a, bias = args.a, args.bias
    _, channels, height, width = a.shape
    architecture = triton_support.architecture(a.device)
    rows = bias is not None and bias.dim() == 2 and bias.shape[0] > 1
    given = bias is not None
    launch = residual_launch(
        architecture, channels, height * width, a.element_size(), args.scale, given, rows
    )
    return Runner([launch], args)


@functools.cache
def residual_launch(
    architecture: int,
    channels: int,
    pixels: int,
    itemsize: int,
    scale: float,
    with_bias: bool,
    bias_per_sample: bool = False,
) -> Launch:
    """One pass: two tensors read, one written."""
    from . import triton_programs as programs

    tile = flat_tile(architecture, "residual", itemsize)
    size = channels * pixels
    return Launch(
        programs.add,
        -(-size // tile.channels),
        {"a_ptr": "a", "b_ptr": "b", "bias_ptr": "bias", "out_ptr": "out"},
        {"SCALE": scale, "C": channels, "SIZE": size, "ROWS": bias_per_sample, "K": tile.channels},
        tile,
        2,
        1,
        math.gcd(ACCESS, itemsize * size, itemsize * (channels if with_bias else size)),
    )
