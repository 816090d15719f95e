"""What a purifier is called with, and in which state of torch: images, seeds, inference mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import mistake

Function = TypeVar("Function", bound=Callable[..., Tensor])


def outside_inference_mode(function: Function) -> Function:
    """Run a method of (self, x, ...) with inference mode off and no gradient recorded where the caller has it on.

    Guidances and likelihood maximisation differentiate to purify at all. And what a purifier computes once and keeps
    must not be made of inference tensors, which no later gradient could use.
    """

    @functools.wraps(function)
    def run(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_inference_mode_enabled():
            return function(self, x, *args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(self, x.clone() if isinstance(x, Tensor) else x, *args, **kwargs)

    return run  # type: ignore[return-value]


RANGE_SLACK = 1e-6
"""How far outside [0, 1] a pixel may lie: attacks project in float32 and miss by a rounding error."""


def check_range(x: Tensor, argument: str = "x") -> None:
    """Raise ValueError unless every pixel is finite and in [0, 1] up to a float32 rounding error."""
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if not low <= high or abs(low) == float("inf") or abs(high) == float("inf"):
        raise ValueError(mistake(argument, "finite", "NaN or Inf in it"))
    if low < -RANGE_SLACK or high > 1.0 + RANGE_SLACK:
        remedy = "Undo a mean/std normalisation, map [-1, 1] with (x + 1) / 2, divide 8-bit images by 255"
        raise ValueError(mistake(argument, "in [0, 1]", f"values in [{low:g}, {high:g}]", remedy))


def check_seed(seed: int) -> int:
    """Return ``seed`` as an integer in [0, 2**64); raise TypeError or ValueError for anything else."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(mistake("seed", "an integer in [0, 2**64)", f"{type(seed).__name__} {seed!r}"))
    if not 0 <= seed.__index__() < 2**64:
        raise ValueError(mistake("seed", "an integer in [0, 2**64)", seed))
    return seed.__index__()
