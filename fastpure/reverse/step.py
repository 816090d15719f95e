"""One row of the table: its arithmetic, forward and transposed, and who carries it out.

The arithmetic is ``evaluate`` (the networks), ``advance`` (the state) and ``row_vjp`` (the transpose of both). An
``Executor`` decides how a row's operations reach the device; loop and adjoint need not know how.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..errors import finite, mistake
from ..guidance import VJP, Guidance, GuidanceStep, JointVJP, PredictionGuidance
from ..guidance.base import range_scale
from ..kernels import NoiseKeys, Stream, affine_row, affine_row_vjp
from ..nets import Conditioning, Denoiser, Weights
from ..schedule import StepTable
from ..shown import Fields, Settings
from .noise import NoiseSource


def culprit(process: Process, k: int, x: Tensor, context: Context, noise: NoiseSource) -> str:
    """Which network answers NaN or Inf at row ``k`` in the finite state ``x``, as a sentence."""
    row, guidance = process.table.rows[k], process.guidance
    remedy = "though its input was finite; check its weights, or use a wider precision"
    with torch.no_grad():
        if row.calls_network and not bool(
            torch.isfinite(process.denoiser.noise_pred(x, process.conditioning, k)).all()
        ):
            return f"the denoiser {type(process.denoiser.network).__name__} answered it, {remedy}"
        if guidance is not None:
            answer = guidance.gradient(x, context, guidance_step(process, k, x, noise))
            if not bool(torch.isfinite(answer).all()):
                networks = ", ".join(type(network).__name__ for network in guidance.networks())
                named = f"{type(guidance).__name__} ({networks})" if networks else type(guidance).__name__
                return f"the guidance {named} answered it, {remedy}"
    return "the input and all answers of the networks were finite, so the step itself overflowed"


def check_cotangent(v: Tensor, sample_ids: Tensor) -> None:
    """Raise NonFiniteError if the gradient that arrived at the purified images was NaN or Inf already."""
    finite(v, sample_ids, "what comes after the purification (the classifier's gradient, or the loss)")


Context = tuple[Tensor, ...]
"""What the guidance read from the purifier's input."""

Cotangents = tuple[Tensor, tuple["Tensor | None", ...], "Tensor | None"]
"""Of (state, context, register); None stands for zero."""


@dataclass(frozen=True, eq=False, repr=False)
class Process(Fields):
    """A denoiser, a table and a guidance on one device: all that is constant over calls.

    Attributes:
        denoiser: predicts the noise.
        conditioning: what the denoiser is told at each row, computed once.
        table: a row per step.
        matrix: the table for the kernel [K, 16] in the state's dtype, on the device.
        steps: the row numbers [K] int64; on the device too, so that a recorded row can read its own there.
        guidance: added to the score where the table says so.
        weights: of the networks.
        made_of: their state when all this was computed.
    """

    denoiser: Denoiser
    conditioning: Conditioning
    table: StepTable
    matrix: Tensor
    steps: Tensor
    guidance: Guidance | None
    weights: Weights
    made_of: tuple[int, ...]

    @staticmethod
    def build(
        denoiser: Denoiser,
        table: StepTable,
        guidance: Guidance | None,
        device: torch.device,
        dtype: torch.dtype,
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
        weights = Weights(denoiser, *(guidance.networks() if guidance else ()))
        return Process(denoiser, conditioning, table, matrix, steps, guidance, weights, weights.state())

    @cached_property
    def narrow(self) -> bool:
        """Whether a network computes in float16, whose range cotangents must be brought into."""
        first = (next(network.parameters(), None) for network in self.networks())
        return any(weight is not None and weight.dtype == torch.float16 for weight in first)

    def networks(self) -> tuple[nn.Module, ...]:
        """The denoiser and the guidance's networks."""
        return (self.denoiser, *(self.guidance.networks() if self.guidance else ()))

    def is_current(self) -> bool:
        """Whether the networks are still those that it was computed from."""
        return self.weights.state() == self.made_of

    def require_current(self) -> None:
        """Raise RuntimeError if a weight has changed: what is left to do would be done with another network."""
        if not self.is_current():
            raise RuntimeError(
                "weights of the denoiser or of the guidance changed between a purification and its backward pass, "
                "which would give the gradient of neither network. Call the purifier again after changing weights"
            )


@dataclass(frozen=True)
class Tape:
    """Outputs of the networks at one state, each with its VJP; a VJP may be called once.

    Where the guidance reads the predicted noise there is one VJP of both, ``joint_vjp``, and neither of the others.
    """

    noise_pred: Tensor | None
    noise_pred_vjp: Callable[[Tensor], Tensor] | None
    guidance: Tensor | None
    guidance_vjp: VJP | None
    joint_vjp: JointVJP | None = None


def differentiable_once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Decorates ``backward`` of an autograd function: its result cannot be differentiated, in whatever way one tries.

    torch's own ``once_differentiable`` raises where ``backward()`` reaches it; ``torch.autograd.grad`` twice goes
    around it and returns the part that other paths contribute. Here the result depends on everything that the
    function saved, and whoever asks for that derivative gets the error.
    """

    @wraps(backward)
    def run(ctx: Any, *v: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            found = backward(ctx, *v)
        if not torch.is_grad_enabled():
            return found
        saved = [t for t in (*ctx.saved_tensors, *v) if t is not None and t.requires_grad]
        if not saved:
            return found
        return tuple(_Final.apply(part, *saved) if isinstance(part, Tensor) else part for part in found)

    return run


class _Final(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *saved: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "the gradient of a purification cannot be differentiated again: the exact adjoint exists once. For second "
            "derivatives write the purification out with Denoiser.noise_pred, which can be differentiated twice"
        )


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a gradient with respect to one of ``tensors`` is being recorded."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def evaluate(
    process: Process, k: int, x: Tensor, context: Context, noise: NoiseSource
) -> tuple[Tensor | None, Tensor | None]:
    """Predicted noise and guidance gradient at row ``k``, without gradient; None where the row ignores them."""
    row, steers = process.table.rows[k], _steering(process, k)
    noise_pred = guidance = None
    if isinstance(steers, PredictionGuidance):
        return steers.evaluate(x, context, guidance_step(process, k, x, noise))
    if row.calls_network:
        noise_pred = process.denoiser.noise_pred(x, process.conditioning, k)
    if steers is not None:
        guidance = steers.gradient(x, context, guidance_step(process, k, x, noise))
    return noise_pred, guidance


def linearize(process: Process, k: int, x: Tensor, context: Context, noise: NoiseSource) -> Tape:
    """Predicted noise and guidance gradient at row ``k`` together with their VJPs.

    Raises:
        ValueError: the denoiser's output is cut off from its input (``detach`` or ``no_grad`` inside).
    """
    steers, half = _steering(process, k), process.narrow
    if isinstance(steers, PredictionGuidance):
        step = guidance_step(process, k, x, noise)
        noise_pred, guidance, joint = steers.linearize_both(x, context, step)
        return Tape(noise_pred, None, guidance, None, _both_in_range(joint) if half else joint)
    tape = Tape(None, None, None, None)
    if process.table.rows[k].calls_network:
        noise_pred, pull = _denoised(process, k, x, half)
        tape = replace(tape, noise_pred=noise_pred, noise_pred_vjp=pull)
    if steers is not None:
        guidance, vjp = steers.linearize(x, context, guidance_step(process, k, x, noise))
        tape = replace(tape, guidance=guidance, guidance_vjp=_in_range(vjp) if half else vjp)
    return tape


def _steering(process: Process, k: int) -> Guidance | None:
    """The guidance where row ``k`` asks it."""
    return process.guidance if process.table.rows[k].calls_guidance else None


def _denoised(process: Process, k: int, x: Tensor, half: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        noise_pred = process.denoiser.noise_pred(leaf, process.conditioning, k)
    if not noise_pred.requires_grad:
        raise ValueError(
            "`denoiser` must be differentiable with respect to its input, but its output has no gradient. "
            "Remove `detach` or `no_grad` from its forward, or call the purifier under torch.no_grad()"
        )

    def vjp(v: Tensor) -> Tensor:
        scale = range_scale(v) if half else 1.0
        return torch.autograd.grad(noise_pred, leaf, v * scale)[0] / scale

    return noise_pred.detach(), vjp


def _in_range(vjp: VJP) -> VJP:
    def scaled(v: Tensor) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
        scale = range_scale(v)
        through_state, through_context = vjp(v * scale)
        unscaled = tuple(None if part is None else part / per_sample(scale, part) for part in through_context)
        return None if through_state is None else through_state / scale, unscaled

    return scaled


def _both_in_range(vjp: JointVJP) -> JointVJP:
    def scaled(v: Tensor, v_guidance: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        scale = range_scale(torch.maximum(v.abs(), v_guidance.abs()))
        through_state, through_context = vjp(v * scale, v_guidance * scale)
        return through_state / scale, tuple(
            None if part is None else part / per_sample(scale, part) for part in through_context
        )

    return scaled


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """One number per sample, shaped to multiply ``like`` [B, ...]."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def guidance_step(process: Process, k: int, x: Tensor, noise: NoiseSource) -> GuidanceStep:
    """What the guidance is told at row ``k`` of a state like ``x``."""
    row = process.table.rows[k]
    return GuidanceStep(
        k,
        row.alpha,
        row.sigma,
        lambda: noise.guidance(k, x),
        lambda state: process.denoiser.noise_pred(state, process.conditioning, k),
    )


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


def row_vjp(
    process: Process, k: int, x: Tensor | None, tape: Tape | None, v: Tensor, w: Tensor | None
) -> Cotangents:
    """Transpose of row ``k``: cotangents of what it read from those of its outputs (state v, register w).

    v_x = a v + q w + J_eps^T (b v + r w) + H_g^T (c v + u w), with the clipping mask where the row clips. Noise
    plays no part.
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
    if tape is not None and tape.joint_vjp is not None and v_guidance is not None:
        through, v_context = tape.joint_vjp(v_pred, v_guidance)
        return v_x + through, v_context, v_register
    if tape is not None and tape.noise_pred_vjp is not None and row.calls_network:
        v_x = v_x + tape.noise_pred_vjp(v_pred)
    if tape is not None and tape.guidance_vjp is not None and v_guidance is not None:
        through_state, v_context = tape.guidance_vjp(v_guidance)
        if through_state is not None:
            v_x = v_x + through_state
    return v_x, v_context, v_register


class Rows(ABC):
    """The rows of a table for one batch. States and cotangents are [B, C, H, W]; nothing returned is used again."""

    @abstractmethod
    def forward(
        self, k: int, x: Tensor, register: Tensor | None, *, vjp_follows: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The next state and register; ``vjp_follows`` announces that ``vjp`` will be asked for this row."""

    @abstractmethod
    def forward_keeping(
        self, k: int, x: Tensor, register: Tensor | None
    ) -> tuple[Tensor, Tensor | None, object | None]:
        """The same, and what ``vjp`` needs to do without the networks (None: it will recompute)."""

    @abstractmethod
    def vjp(self, k: int, x: Tensor, tape: object | None, v: Tensor, w: Tensor | None) -> Cotangents:
        """The transpose of row ``k`` at state ``x`` for cotangents ``v`` of the state and ``w`` of the register."""

    @abstractmethod
    def kept(self, chosen: frozenset[int]) -> frozenset[int]:
        """The rows whose tapes are kept, given what the memory plan chose."""


class EagerRows(Rows):
    """Every operation is launched when it is due."""

    def __init__(self, process: Process, context: Context, noise: NoiseSource) -> None:
        self.process = process
        self.context = context
        self.noise = noise

    def forward(
        self, k: int, x: Tensor, register: Tensor | None, *, vjp_follows: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Rows.forward``."""
        outputs = evaluate(self.process, k, x, self.context, self.noise)
        return advance(self.process, k, x, register, outputs, self.noise.row(k))

    def forward_keeping(
        self, k: int, x: Tensor, register: Tensor | None
    ) -> tuple[Tensor, Tensor | None, object | None]:
        """See ``Rows.forward_keeping``; what is kept is a ``Tape``."""
        tape = linearize(self.process, k, x, self.context, self.noise)
        outputs = (tape.noise_pred, tape.guidance)
        return *advance(self.process, k, x, register, outputs, self.noise.row(k)), tape

    def vjp(self, k: int, x: Tensor, tape: Any, v: Tensor, w: Tensor | None) -> Cotangents:
        """See ``Rows.vjp``."""
        known = tape if isinstance(tape, Tape) else None
        if known is None and self.process.table.rows[k].calls_something:
            known = linearize(self.process, k, x, self.context, self.noise)
        return row_vjp(self.process, k, x, known, v, w)

    def kept(self, chosen: frozenset[int]) -> frozenset[int]:
        """What was chosen."""
        return chosen


@dataclass(frozen=True)
class Execution(Settings):
    """How the steps of a purification are carried out: by which executor of ``EXECUTORS``, and why by that one."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} ({self.reason})"


class Executor(ABC):
    """Carries out rows. It may keep what it prepared for the next batch, but the result is always ``EagerRows``'.

    Attributes:
        manner: how it goes about a step, in a few words that complete "... on cuda:0".
        execution: what is planned before the first step, what happened after it.
    """

    manner: ClassVar[str]
    execution: Execution

    @abstractmethod
    def __init__(self, execution: Execution, insist: bool) -> None:
        """``insist``: raise where a step cannot be carried out like this, instead of falling back to eager rows."""

    @classmethod
    @abstractmethod
    def reason_against(cls, device: torch.device | None) -> str | None:
        """Why no step on ``device`` can be carried out like this (None: on no device here); None if it can."""

    @abstractmethod
    def rows(self, process: Process, x: Tensor, context: Context, noise: NoiseSource) -> Rows:
        """The rows of ``process`` for a batch like ``x``."""

    @property
    def nbytes(self) -> int:
        """Device memory it holds from one batch to the next, which is not free for a step's activations."""
        return 0

    def clear(self) -> None:  # noqa: B027
        """Forget what was prepared: weights moved."""


@final
@dataclass(frozen=True)
class EagerExecutor(Executor):
    """Launches every operation when it is due: serves every device, prepares nothing and never falls back."""

    manner: ClassVar[str] = "operations are launched one by one"
    execution: Execution = Execution("eager", "asked for")
    insist: bool = True

    @classmethod
    def reason_against(cls, device: torch.device | None) -> str | None:
        """None."""
        return None

    def rows(self, process: Process, x: Tensor, context: Context, noise: NoiseSource) -> Rows:
        """``EagerRows``."""
        return EagerRows(process, context, noise)
