"""The exact discrete adjoint: the loop run backwards through transposed rows, as one autograd function.

For row k with cotangent v of its output, v <- a v + J_eps^T (b v) + H_g^T (c v), plus the cotangents of
everything the guidance read from the input. This is the gradient of the computation that was carried out, not
of a continuous limit of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import NonFiniteError, named
from .blame import check_cotangent
from .loop import Trajectory, check_finite, record, walk
from .memory import MemoryPlan
from .noise import NoiseSource
from .procedure import Procedure, explain, perform, run
from .rows import rows_of
from .step import Context, Process


class Environment(Protocol):
    """Settings under which the networks run, such as the matrix precision; entered forward and backward."""

    def __call__(self) -> AbstractContextManager[object]:
        """A fresh context manager."""


@dataclass(frozen=True)
class Call:
    """One purification: everything but the tensors that may carry gradients."""

    process: Process
    noise: NoiseSource
    sample_ids: Tensor
    plan: MemoryPlan = field(default_factory=MemoryPlan)
    costs: dict[tuple[object, ...], int] = field(default_factory=dict)
    environment: Environment = nullcontext
    procedure: Procedure | None = None


def reverse(call: Call, x: Tensor, context: Context) -> Tensor:
    """Run the table from state ``x`` [B, C, H, W]; differentiable in ``x`` and in floating ``context`` tensors.

    Raises:
        NonFiniteError: NaN or Inf appeared, with the step and the sample ids.
    """
    if call.procedure is not None:
        return perform(call, call.procedure, x, context)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *context)):
        return _Reverse.apply(call, x, *context)
    with torch.no_grad(), call.environment():
        end = walk(call.process, x, context, call.noise)
        check_finite(call.process, x, end, context, call.noise, call.sample_ids)
    return end


def states(call: Call, x: Tensor, context: Context) -> list[Tensor]:
    """The state before the first row and after every row: K + 1 tensors [B, C, H, W].

    Differentiable as ``reverse`` is, for losses that look at the way and not only at its end, where rows alone say
    how the table is walked; without gradient where a procedure does.
    """
    recording = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *context))
    if recording and call.procedure is None:
        return list(_States.apply(call, x, *context).unbind(0))
    visited = [x.detach()]

    def keep(k: int, state: Tensor) -> None:
        visited.append(state)

    with torch.no_grad(), call.environment():
        if call.procedure is not None:
            run(call, call.procedure, visited[0], context, visit=keep)
        else:
            walk(call.process, visited[0], context, call.noise, keep)
            check_finite(call.process, visited[0], visited[-1], context, call.noise, call.sample_ids)
    if call.procedure is not None and not bool(torch.isfinite(visited[-1]).all()):
        explain(call, call.procedure, visited[0], context)
    return visited


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *context: Tensor) -> Tensor:
        return _record(ctx, call, x, context).end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return _gradients(ctx, v, None)


class _States(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *context: Tensor) -> Tensor:
        trajectory = _record(ctx, call, x, context)
        return torch.stack([*trajectory.states, trajectory.end])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return _gradients(ctx, v[-1], v[:-1])


def _record(ctx: Any, call: Call, x: Tensor, context: Context) -> Trajectory:
    x = x.detach()
    detached = tuple(tensor.detach() for tensor in context)
    with call.environment():
        trajectory = record(call.process, x, detached, call.noise, call.plan, call.costs)
        check_finite(call.process, x, trajectory.end, detached, call.noise, call.sample_ids)
    ctx.call, ctx.context = call, detached
    ctx.states, ctx.tapes = trajectory.states, trajectory.tapes
    return trajectory


def _gradients(ctx: Any, v: Tensor, v_states: Tensor | None) -> tuple[Any, ...]:
    with ctx.call.environment():
        trajectory = Trajectory(v, ctx.states, ctx.tapes)
        v_x, v_context = _pull_back(ctx.call, trajectory, v, ctx.context, v_states)
    if not bool(torch.isfinite(v_x).all()):
        check_cotangent(v, ctx.call.sample_ids)
        bad = ~torch.isfinite(v_x).flatten(1).all(1)
        samples = named(ctx.call.sample_ids, bad)
        raise NonFiniteError(f"the gradient of the purification is NaN or Inf for {samples}")
    return (None, v_x, *v_context)


def _pull_back(
    call: Call, trajectory: Trajectory, v: Tensor, context: Context, v_states: Tensor | None
) -> tuple[Tensor, list[Tensor | None]]:
    # `v_states[k]` is the cotangent that a loss puts on the state before row k itself.
    process, w = call.process, None
    rows = rows_of(process, trajectory.states[0], context, call.noise)
    totals: list[Tensor | None] = [None] * len(context)
    for k in reversed(range(len(process.table))):
        x, tape = trajectory.states[k], trajectory.tapes.pop(k, None)
        v, v_context, w = rows.backward(k, x, tape, v, w)
        for i, part in enumerate(v_context):
            if part is not None:
                total = totals[i]
                totals[i] = part if total is None else total + part
        v = v if v_states is None else v + v_states[k]
    return v, totals
