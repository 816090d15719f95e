"""DDPM with the variance that the network learned (Nichol and Dhariwal 2021), as in GDMP's ImageNet setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import one_of
from ..kernels import Stream
from ..nets import Denoiser
from ..reverse import NoiseSource, Procedure, Process
from ..reverse.noise import normal
from ..reverse.procedure import State, steered
from ..schedule import StepTable, ancestral, guidance_variances, variance_range

VARIANCES = ("small", "large", "learned")
"""The posterior variance, beta, and what the network says between the two."""


def pulled_chain(
    indices: Sequence[int], variance: str, clip_x0: bool, scales: Sequence[float]
) -> tuple[StepTable, Procedure | None]:
    """DDPM over ``indices``, its mean moved by ``scales[k]`` variance_k g at row k; and what walks it, if not the rows.

    For "learned" the rows hold what belongs to the largest variance.
    """
    if one_of("variance", variance, VARIANCES) != "learned":
        weights = guidance_variances(indices, variance)
        pulls = [v * s for v, s in zip(weights, scales, strict=True)]
        return ancestral(indices, variance, clip_x0).pulled(pulls), None
    bounds = variance_range(indices)
    pulls = [high * s for (_, high), s in zip(bounds, scales, strict=True)]
    table = ancestral(indices, "large", clip_x0).pulled(pulls)
    rows = [
        replace(row, log_range=math.log(low / high))
        for row, (low, high) in zip(table.rows, bounds, strict=True)
    ]
    return StepTable(tuple(rows)), LearnedVariance()


@dataclass(frozen=True)
class LearnedVariance(Procedure):
    """Walks the table of ``pulled_chain``: every value of the image has a variance of its own, which the network says.

    With s the share that it answers, the variance is that of the row times exp((1 - s) log_range): so much of the row's
    guidance moves the mean, and the noise is the row's times its root. The variance depends on the image, and its
    derivative is part of the exact gradient.
    """

    guided_by_table: ClassVar[bool] = True

    def begin(self, x: Tensor) -> State:
        """(image,)."""
        return (x,)

    def step(
        self, process: Process, k: int, state: State, context: tuple[Tensor, ...], noise: NoiseSource
    ) -> State:
        """See ``Procedure.step``."""
        (x,), row = state, process.table.rows[k]
        if row.forward:
            return (row.a * x + row.d * normal(noise, k, x, Stream.FORWARD),)
        e, share = process.denoiser.noise_and_variance(x, process.conditioning, k)
        if row.clip:
            clean = (x - row.sigma * e) / row.alpha
            edge = (x - row.alpha * clean.detach().sign()) / row.sigma
            e = torch.where(clean.abs() > 1.0, edge, e)
        root = torch.exp((0.5 * row.log_range) * (1.0 - share))
        after = row.a * x + row.b * e
        if row.calls_guidance and process.guidance is not None:
            after = after + (row.c * root.square()) * steered(process, k, x, context, noise)
        return (after if row.d == 0.0 else after + (row.d * root) * normal(noise, k, x),)

    def image(self, state: State) -> Tensor:
        """The state itself."""
        return state[0]

    def check_denoiser(self, denoiser: Denoiser) -> None:
        """Raise ValueError unless the network learned a variance."""
        denoiser.require_variance()
