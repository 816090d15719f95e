"""Predictor-corrector sampling of the reverse VP-SDE (Song et al. 2021, algorithms 3 and 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import Stream
from ...reverse import NoiseSource, Procedure, Process
from ...reverse.noise import normal
from ...reverse.procedure import State


@dataclass(frozen=True)
class PredictorCorrector(Procedure):
    """Walks the table of ``schedule.predictor_corrector``: row 0 diffuses, odd rows correct, even rows predict.

    A corrector's step is (|z| / |e|)^2 times its row's, with the norms of each image's noise and predicted
    noise. The step depends on the image, and its derivative is part of the exact gradient.
    """

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
        e = process.denoiser.noise_pred(x, process.conditioning, k)
        if row.d == 0.0:
            return (row.a * x + row.b * e,)
        z = normal(noise, k, x)
        if k % 2 == 0:
            return (row.a * x + row.b * e + row.d * z,)
        ratio = (_norm(z) / _norm(e)).view(-1, 1, 1, 1)
        return (x + row.b * ratio.square() * e + row.d * ratio * z,)

    def image(self, state: State) -> Tensor:
        """The state itself."""
        return state[0]


def _norm(x: Tensor) -> Tensor:
    # Held above zero: a network that predicts no noise at all would otherwise divide by it.
    return x.flatten(1).square().sum(1).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
