"""Purifications that no table can hold, such as Adam on a likelihood, with an exact gradient all the same.

A procedure's steps are plain differentiable operations. Where the memory plan does not keep a step's graph, the
step is run without one and again, with one, in the backward pass; noise is a function of its keys, so the second
run is the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from ..errors import NonFiniteError, named
from ..guidance.base import range_scale
from ..nets import Denoiser
from ..schedule import StepTable
from .loop import Call
from .memory import count_saved_bytes
from .noise import NoiseSource
from .step import (
    Context,
    Process,
    check_cotangent,
    culprit,
    differentiable_once,
    guidance_step,
    per_sample,
    wants_gradient,
)

State = tuple[Tensor, ...]


class Procedure(ABC):
    """Walks the rows of a table by its own rule. Implementations are frozen dataclasses and pure functions.

    The table still says how many steps there are, which noise level and label belong to each, and which draw
    noise. Sample i of every tensor in the state depends on sample i of the input only.

    Attributes:
        guided_by_table: whether the guidance counts for as much as the table's rows say.
    """

    guided_by_table: ClassVar[bool] = False

    @abstractmethod
    def begin(self, x: Tensor) -> State:
        """The state before the first row, for the input ``x`` [B, C, H, W] in [-1, 1]."""

    @abstractmethod
    def step(self, process: Process, k: int, state: State, context: Context, noise: NoiseSource) -> State:
        """The state after row ``k``. Differentiable where a gradient is being recorded, runnable where not."""

    @abstractmethod
    def image(self, state: State) -> Tensor:
        """The image in ``state``, [B, C, H, W] in [-1, 1]."""

    def passes(self, table: StepTable) -> int:
        """Passes through the denoiser that it makes besides one forward where the ``table``'s rows call it."""
        return 0

    def asked_level(self, table: StepTable) -> float:
        """Highest noise level, sigma / alpha, at which it asks the denoiser, where that is not the rows' own; or 0."""
        return 0.0

    def check_denoiser(self, denoiser: Denoiser) -> None:  # noqa: B027
        """Raise ValueError if ``denoiser`` does not answer what the rule asks it."""

    def check_precision(self, dtype: torch.dtype) -> None:  # noqa: B027
        """Raise ValueError if the rule loses its meaning with networks that compute in ``dtype``."""


def perform(call: Call, procedure: Procedure, x: Tensor, context: Context) -> Tensor:
    """``reverse`` for a procedure: differentiable in ``x`` [B, C, H, W] and in floating ``context`` tensors.

    Raises:
        NonFiniteError: NaN or Inf appeared, with the step and the sample ids.
    """
    if wants_gradient(x, *context):
        end = _Perform.apply(call, procedure, x, *context)
    else:
        with torch.no_grad(), call.environment():
            end = run(call, procedure, x, context)
    if not bool(torch.isfinite(end).all()):
        explain(call, procedure, x, context)
    return end


def perform_states(call: Call, procedure: Procedure, x: Tensor, context: Context) -> list[Tensor]:
    """``states`` for a procedure, without gradient: the image before the first row and after every row."""
    visited = [x.detach()]
    with torch.no_grad(), call.environment():
        run(call, procedure, visited[0], context, visit=lambda k, image: visited.append(image))
    if not bool(torch.isfinite(visited[-1]).all()):
        explain(call, procedure, visited[0], context)
    return visited


def run(
    call: Call,
    procedure: Procedure,
    x: Tensor,
    context: Context,
    kept: frozenset[int] | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The plain loop. ``kept`` are the steps whose graph is kept; None if no gradient is being recorded.

    ``visit(k, image)`` is shown the image after every row ``k``.
    """
    state = procedure.begin(x)
    for k in range(len(call.process.table)):
        if kept is not None and k not in kept:
            state = _Recomputed.apply(call, procedure, k, len(state), *state, *context)
        else:
            state = procedure.step(call.process, k, state, context, call.noise)
        if visit is not None:
            visit(k, procedure.image(state))
    return procedure.image(state)


class _Perform(torch.autograd.Function):
    # One function around all steps, so that the backward pass too runs in the call's environment.
    @staticmethod
    def forward(ctx: Any, call: Call, procedure: Procedure, x: Tensor, *context: Tensor) -> Tensor:
        ctx.arguments = (call, procedure)
        ctx.save_for_backward(x, *context)
        ctx.tensors = (x.detach(), *(tensor.detach() for tensor in context))
        ctx.graph = _recorded(call, procedure, ctx.tensors)
        return ctx.graph[1].detach()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        call, procedure = ctx.arguments
        call.process.require_current()
        # The graph serves once; another backward pass through a retained outer graph records it again.
        leaves, end = ctx.graph or _recorded(call, procedure, ctx.tensors)
        ctx.graph = None
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        # The VJP is linear in v, so a power of two per sample keeps small gradients inside float16 exactly.
        scale = (
            range_scale(v).flatten()
            if call.process.denoiser.dtype == torch.float16
            else torch.ones_like(v[:, 0, 0, 0])
        )
        with call.environment():
            parts = [
                None if part is None else part / per_sample(scale, part)
                for part in torch.autograd.grad(end, wanted, v * per_sample(scale, v), allow_unused=True)
            ]
        if parts[0] is not None and not bool(torch.isfinite(parts[0]).all()):
            check_cotangent(v, call.sample_ids)
            bad = ~torch.isfinite(parts[0]).flatten(1).all(1)
            samples = named(call.sample_ids, bad)
            raise NonFiniteError(f"the gradient of the purification is NaN or Inf for {samples}")
        return (None, None, *(parts.pop(0) if leaf.requires_grad else None for leaf in leaves))


def _recorded(call: Call, procedure: Procedure, tensors: Context) -> tuple[Context, Tensor]:
    leaves = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in tensors)
    with torch.enable_grad(), call.environment():
        kept = _steps_to_keep(call, procedure, leaves[0], leaves[1:])
        end = run(call, procedure, leaves[0], leaves[1:], kept)
    return leaves, end


def explain(call: Call, procedure: Procedure, x: Tensor, context: Context) -> NoReturn:
    """Raise NonFiniteError naming the first bad step, the samples and the network, by running it once more."""
    before = x.detach()

    def look(k: int, image: Tensor) -> None:
        nonlocal before
        bad = ~torch.isfinite(image).flatten(1).all(1)
        if bool(bad.any()):
            samples = named(call.sample_ids, bad)
            reason = culprit(call.process, k, before, context, call.noise)
            raise NonFiniteError(f"NaN or Inf appeared at step {k} for {samples}: {reason}")
        before = image

    with torch.no_grad(), call.environment():
        run(call, procedure, x.detach(), tuple(t.detach() for t in context), visit=look)
    raise NonFiniteError("NaN or Inf appeared in the purified image but not when the run was repeated")


def _steps_to_keep(call: Call, procedure: Procedure, x: Tensor, context: Context) -> frozenset[int]:
    steps, cost = list(range(len(call.process.table))), 0
    if call.plan.measures:
        key = ("procedure", tuple(x.shape), x.dtype, x.device, call.process.denoiser.dtype)
        if key not in call.costs:
            call.costs[key] = _bytes_per_step(call, procedure, x, context)
        cost = call.costs[key]
    return call.plan.rows_kept(steps, cost, x.device)


def _bytes_per_step(call: Call, procedure: Procedure, x: Tensor, context: Context) -> int:
    process = call.process
    weights = [tensor for network in process.networks() for tensor in network.state_dict().values()]
    with torch.enable_grad(), count_saved_bytes(x, *weights) as saved:
        state = procedure.begin(x.detach().requires_grad_(True))
        # The first step that calls the network: rows before it only add noise.
        for k, row in enumerate(process.table.rows):
            state = procedure.step(process, k, state, context, call.noise)
            if row.calls_network:
                break
    del state
    return saved.total + x.nbytes


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, procedure: Procedure, k: int, n: int, *tensors: Tensor) -> State:
        ctx.arguments = (call, procedure, k, n)
        ctx.save_for_backward(*tensors)
        after = procedure.step(call.process, k, tensors[:n], tensors[n:], call.noise)
        # An output that is an input (a step that leaves a part of the state alone) must be another tensor.
        after = tuple(t.clone() if any(t is given for given in tensors) else t for t in after)
        ctx.mark_non_differentiable(*(t for t in after if not t.is_floating_point()))
        return after

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *v: Tensor) -> tuple[Any, ...]:
        call, procedure, k, n = ctx.arguments
        inputs = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors)
        with torch.enable_grad():
            after = procedure.step(call.process, k, inputs[:n], inputs[n:], call.noise)
        pairs = [(out, part) for out, part in zip(after, v, strict=True) if out.requires_grad]
        wanted = [t for t in inputs if t.requires_grad]
        parts = list(
            torch.autograd.grad([p[0] for p in pairs], wanted, [p[1] for p in pairs], allow_unused=True)
        )
        return (None, None, None, None, *(parts.pop(0) if t.requires_grad else None for t in inputs))


def steered(process: Process, k: int, x: Tensor, context: Context, noise: NoiseSource) -> Tensor:
    """The guidance's gradient at ``x``, differentiable as the guidance itself says (see ``Guidance``)."""
    assert process.guidance is not None
    step = guidance_step(process, k, x, noise)
    if wants_gradient(x, *context):
        return _Steered.apply(process.guidance, step, x, *context)
    return process.guidance.gradient(x, context, step)


class _Steered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, guidance: Any, step: Any, x: Tensor, *context: Tensor) -> Tensor:
        ctx.save_for_backward(x, *context)
        g, ctx.vjp = guidance.linearize(x, context, step)
        return g

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        v_x, v_context = ctx.vjp(v)
        return (None, None, v_x, *v_context)
