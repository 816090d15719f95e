"""Who answered NaN: the purification is not to be blamed for its guidance, nor for the classifier behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import finite
from ..guidance import GuidanceStep
from .noise import NoiseSource
from .step import Context, Process


def culprit(process: Process, k: int, x: Tensor, context: Context, noise: NoiseSource) -> str:
    """Which network answers NaN or Inf at row ``k`` in the finite state ``x``, as a sentence."""
    row, guidance = process.table.rows[k], process.guidance
    remedy = "though its input was finite; check its weights, or use a wider precision"
    with torch.no_grad():
        if row.sigma > 0 and not bool(
            torch.isfinite(process.denoiser.noise_pred(x, process.conditioning, k)).all()
        ):
            return f"the denoiser {type(process.denoiser.network).__name__} answered it, {remedy}"
        if guidance is not None:
            step = GuidanceStep(k, row.alpha, row.sigma, lambda: noise.guidance(k, x))
            if not bool(torch.isfinite(guidance.gradient(x, context, step)).all()):
                networks = ", ".join(type(network).__name__ for network in guidance.networks())
                return f"the guidance {type(guidance).__name__} ({networks}) answered it, {remedy}"
    return "the input and all answers of the networks were finite, so the step itself overflowed"


def check_cotangent(v: Tensor, sample_ids: Tensor) -> None:
    """Raise NonFiniteError if the gradient that arrived at the purified images was NaN or Inf already."""
    finite(v, sample_ids, "what comes after the purification (the classifier's gradient, or the loss)")
