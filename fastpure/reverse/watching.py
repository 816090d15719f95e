"""The walk shown row by row: what the networks answered and which noise was added. For measuring, not for speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..kernels import Stream
from ..schedule import Row
from ..shown import Fields
from .loop import Call, check_finite
from .noise import normal
from .step import Context, advance, evaluate


@final
@dataclass(frozen=True, eq=False, repr=False)
class Seen(Fields):
    """What entered one row; tensors are [B, C, H, W] and None where the row ignores them.

    Attributes:
        k: the row.
        state: before the row.
        noise_pred: the predicted noise as it entered, that of the clamped clean image where the row clips.
        guidance: the guidance gradient.
        noise: the standard normal noise.
    """

    k: int
    state: Tensor
    noise_pred: Tensor | None
    guidance: Tensor | None
    noise: Tensor | None


def watch(call: Call, x: Tensor, context: Context, visit: Callable[[Seen], None]) -> Tensor:
    """Run the table from state ``x`` [B, C, H, W] without a graph, showing every row before it; returns the end state.

    Rows are launched one by one, whatever carries out other calls: the result is the same.

    Raises:
        NonFiniteError: NaN or Inf appeared, with the step and the sample ids.
    """
    start, register = x, None
    with torch.no_grad(), call.environment():
        for k, row in enumerate(call.process.table.rows):
            outputs = evaluate(call.process, k, x, context, call.noise)
            stream = Stream.FORWARD if row.forward else Stream.REVERSE
            noise = normal(call.noise, k, x, stream) if row.d != 0.0 else None
            visit(Seen(k, x, _entering(row, x, outputs[0]), outputs[1], noise))
            x, register = advance(call.process, k, x, register, outputs, call.noise.row(k))
        check_finite(call, start, x, context)
    return x


def _entering(row: Row, x: Tensor, noise_pred: Tensor | None) -> Tensor | None:
    if noise_pred is None or not row.clip:
        return noise_pred
    clean = (x - row.sigma * noise_pred) / row.alpha
    return torch.where(clean.abs() > 1.0, (x - row.alpha * clean.sign()) / row.sigma, noise_pred)
