"""One row of the table, forward and linearised: everything the loop and the adjoint share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import mistake
from ..guidance import Guidance, GuidanceStep
from ..guidance.base import Pullback
from ..kernels import NoiseKeys, Stream, affine_row, affine_row_vjp
from ..nets import Conditioning, Denoiser
from ..schedule import StepTable
from .noise import NoiseSource

if TYPE_CHECKING:
    from .graphs import Graphs

Context = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Process:
    """A denoiser, a table and a guidance on one device: all that is constant over calls.

    ``matrix`` is the table for the kernel [K, 16] in the state's dtype, ``steps`` the row numbers [K] int64;
    both live on the device so that a captured loop can read them there. ``graphs`` replays rows instead of
    launching their operations one by one.
    """

    denoiser: Denoiser
    conditioning: Conditioning
    table: StepTable
    matrix: Tensor
    steps: Tensor
    guidance: Guidance | None
    graphs: Graphs | None = None

    @staticmethod
    def build(
        denoiser: Denoiser,
        table: StepTable,
        guidance: Guidance | None,
        device: torch.device,
        dtype: torch.dtype,
        graphs: Graphs | None = None,
    ) -> Process:
        """Move the table to ``device`` in the state's ``dtype`` and compute what does not depend on x."""
        if table.uses_guidance and guidance is None:
            raise ValueError(
                mistake("guidance", "given, because the table has guidance coefficients", "None")
            )
        conditioning = denoiser.conditioning(
            *(table.column(name) for name in ("tau", "index", "alpha", "sigma"))
        )
        matrix = torch.tensor(table.matrix, dtype=dtype, device=device)
        steps = torch.arange(len(table), device=device)
        return Process(denoiser, conditioning, table, matrix, steps, guidance, graphs)


@dataclass(frozen=True)
class Tape:
    """Outputs of the networks at one state with their pullbacks; a pullback may be called once."""

    noise_pred: Tensor
    pull_noise_pred: Callable[[Tensor], Tensor]
    guidance: Tensor | None
    pull_guidance: Pullback | None


def evaluate(
    process: Process, k: int, x: Tensor, context: Context, noise: NoiseSource
) -> tuple[Tensor | None, Tensor | None]:
    """Predicted noise and guidance gradient at row ``k``, without graphs; None where the row ignores them."""
    row = process.table.rows[k]
    noise_pred = guidance = None
    if row.calls_network:
        noise_pred = process.denoiser.noise_pred(x, process.conditioning, k)
    if row.calls_guidance and process.guidance is not None:
        guidance = process.guidance.gradient(x, context, _guidance_step(process, k, x, noise))
    return noise_pred, guidance


def linearize(process: Process, k: int, x: Tensor, context: Context, noise: NoiseSource) -> Tape:
    """Predicted noise and guidance gradient at row ``k`` together with what their pullbacks need.

    Raises:
        ValueError: the denoiser's output is cut off from its input (``detach`` or ``no_grad`` inside).
    """
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        noise_pred = process.denoiser.noise_pred(leaf, process.conditioning, k)
    if not noise_pred.requires_grad:
        raise ValueError(
            "`denoiser` must be differentiable with respect to its input, but its output has no gradient. "
            "Remove `detach` or `no_grad` from its forward, or call the purifier under torch.no_grad()"
        )

    half = process.denoiser.dtype == torch.float16

    def pull(v: Tensor) -> Tensor:
        scale = range_scale(v) if half else 1.0
        return torch.autograd.grad(noise_pred, leaf, v * scale)[0] / scale

    guidance, pull_guidance = None, None
    if process.table.rows[k].calls_guidance and process.guidance is not None:
        step = _guidance_step(process, k, x, noise)
        guidance, pull_guidance = process.guidance.linearize(x, context, step)
        pull_guidance = _in_range(pull_guidance) if half else pull_guidance
    return Tape(noise_pred.detach(), pull, guidance, pull_guidance)


def range_scale(v: Tensor) -> Tensor:
    """Power of two per sample [B, 1, ...] that brings the largest entry of ``v`` to about 1.

    A pullback is linear, so scaling its argument and its result is exact; float16 holds nothing below 6e-8, and
    the gradients of a confident classifier are smaller than that.
    """
    largest = v.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.exp2(-torch.floor(torch.log2(largest))).view(-1, *(1,) * (v.dim() - 1))


def _in_range(pull: Pullback) -> Pullback:
    def scaled(v: Tensor) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        scale = range_scale(v)
        through_state, through_context = pull(v * scale)
        unscaled = tuple(None if part is None else part / scale for part in through_context)
        return None if through_state is None else through_state / scale, unscaled

    return scaled


def _guidance_step(process: Process, k: int, x: Tensor, noise: NoiseSource) -> GuidanceStep:
    row = process.table.rows[k]
    return GuidanceStep(k, row.alpha, row.sigma, lambda: noise.guidance(k, x))


def advance(
    process: Process,
    k: int,
    x: Tensor,
    register: Tensor | None,
    outputs: tuple[Tensor | None, Tensor | None],
    noise: NoiseKeys | Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Apply row ``k``: the next state and, where the row writes one, the register."""
    row = process.table.rows[k]
    return affine_row(
        x,
        *outputs,
        register if row.p != 0.0 or row.s != 0.0 else None,
        table=process.matrix,
        step=process.steps[k : k + 1],
        noise=noise if row.d != 0.0 else None,
        stream=Stream.FORWARD if row.forward else Stream.REVERSE,
        want_register=row.writes_register,
    )


def pull_row(
    process: Process, k: int, x: Tensor | None, tape: Tape | None, v: Tensor, w: Tensor | None
) -> tuple[Tensor, tuple[Tensor | None, ...], Tensor | None]:
    """Transpose of row ``k``: cotangents of (state, context, register) from those of its outputs (v, w).

    v_x = a v + q w + J_eps^T (b v + r w) + H_g^T (c v + u w), with the clipping mask where the row clips
    (methods: the exact discrete adjoint). Noise plays no part.
    """
    row = process.table.rows[k]
    v_x, v_pred, v_guidance, v_register = affine_row_vjp(
        v,
        w if row.writes_register else None,
        x=x if row.clip else None,
        noise_pred=tape.noise_pred if tape is not None and row.clip else None,
        table=process.matrix,
        step=process.steps[k : k + 1],
        want_guidance=row.calls_guidance,
        want_register=row.p != 0.0 or row.s != 0.0,
    )
    v_context: tuple[Tensor | None, ...] = ()
    if tape is not None and row.calls_network:
        v_x = v_x + tape.pull_noise_pred(v_pred)
    if tape is not None and tape.pull_guidance is not None and v_guidance is not None:
        through_state, v_context = tape.pull_guidance(v_guidance)
        if through_state is not None:
            v_x = v_x + through_state
    return v_x, v_context, v_register
