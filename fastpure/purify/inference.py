"""Purification under ``torch.inference_mode``, in which nothing can be differentiated, not even inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

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
