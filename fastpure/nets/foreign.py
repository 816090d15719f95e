"""Modules of other libraries that are known by their class's name, so that the library need not be there."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import mistake


def is_unet2d(module: nn.Module) -> bool:
    """Whether it is diffusers' ``UNet2DModel``, or made from one by inheritance."""
    return any(
        kind.__name__ == "UNet2DModel" and kind.__module__.split(".")[0] == "diffusers"
        for kind in type(module).__mro__
    )


def refuse_scheduler(module: nn.Module, scheduler: Any) -> None:
    """Raise ValueError for a scheduler that nobody reads."""
    if scheduler is not None:
        remedy = "Say prediction, time_input and schedule instead"
        found = f"one for {type(module).__name__}"
        raise ValueError(mistake("scheduler", "left out but for diffusers' UNet2DModel", found, remedy))
