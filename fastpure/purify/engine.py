"""What a purifier computes with: its networks in one precision, and whose weights they were copied from."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import nn

from ..guidance import Guidance
from ..methods import Method
from ..nets import Denoiser, Weights, runs_in_one_call
from ..threads import layer_work
from .precision import Precision


def _nobody() -> None:
    return None


@final
@dataclass(frozen=True, eq=False)
class Source:
    """The caller's networks that a purifier's copies were made from, as long as they live.

    Attributes:
        network: the denoiser's.
        weights: of it and of the guidance.
        made_of: their state when they were copied.
    """

    network: Callable[[], nn.Module | None] = _nobody
    weights: Weights = field(default_factory=Weights)
    made_of: tuple[int, ...] = ()

    @staticmethod
    def of(denoiser: Denoiser, method: Method) -> Source:
        guides = method.guidance.networks() if method.guidance else ()
        weights = Weights(denoiser.network, *guides)
        return Source(weakref.ref(denoiser.network), weights, weights.state())

    def has_changed(self) -> bool:
        return self.network() is not None and self.weights.state() != self.made_of


@final
@dataclass(frozen=True, eq=False)
class Engine:
    """The networks of a purifier in one precision.

    Attributes:
        work: for one image between two meetings of threads, by which their number is chosen.
    """

    precision: Precision
    denoiser: Denoiser
    guidance: Guidance | None
    work: float

    @staticmethod
    @torch.inference_mode(False)
    def build(denoiser: Denoiser, method: Method, precision: Precision) -> Engine:
        guidance = method.guidance.cast(precision.network) if method.guidance else None
        if method.procedure is not None:
            method.procedure.check_precision(precision.network)
        _, height, width = denoiser.image_shape
        in_one = partial(runs_in_one_call, dtype=precision.network)
        work = layer_work([denoiser.network], height * width, in_one)
        if (
            guidance is not None
        ):  # many small layers of a guide cost more with two threads than the denoiser gains
            work = min(work, layer_work(guidance.networks(), height * width) or work)
        deployed = denoiser.cast(precision.network)
        deployed.deployed = True
        return Engine(precision, deployed, guidance, work)

    def networks(self) -> tuple[nn.Module, ...]:
        return (self.denoiser, *(self.guidance.networks() if self.guidance else ()))
