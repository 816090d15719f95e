"""The one loop that walks a table, forwards and transposed: the purification and its exact gradient.

For row k with cotangent v of its output, v <- a v + J_eps^T (b v) + H_g^T (c v), plus the cotangents of
everything the guidance read from the input. This is the gradient of the computation that was carried out, not
of a continuous limit of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import NonFiniteError, named
from ..shown import Fields
from .memory import MemoryPlan, count_saved_bytes
from .noise import NoiseSource
from .step import (
    Context,
    EagerExecutor,
    Executor,
    Process,
    check_cotangent,
    culprit,
    differentiable_once,
    linearize,
    wants_gradient,
)


class Environment(Protocol):
    """Settings under which the networks run, such as the matrix precision; entered forward and backward."""

    def __call__(self) -> AbstractContextManager[object]:
        """A fresh context manager."""


@dataclass(frozen=True, repr=False)
class Call(Fields):
    """One purification: everything but the tensors that may carry gradients.

    Attributes:
        process: the networks and the table.
        noise: of every row.
        sample_ids: name the images in error messages.
        plan: what is kept for the backward pass.
        costs: the measured bytes of a step by shape, shared by the calls of one purifier.
        environment: under which the networks run.
        executor: carries out the rows.
    """

    process: Process
    noise: NoiseSource
    sample_ids: Tensor
    plan: MemoryPlan = field(default_factory=MemoryPlan)
    costs: dict[tuple[object, ...], int] = field(default_factory=dict)
    environment: Environment = nullcontext
    executor: Executor = field(default_factory=EagerExecutor)


def reverse(call: Call, x: Tensor, context: Context) -> Tensor:
    """Run the table from state ``x`` [B, C, H, W]; differentiable in ``x`` and in floating ``context`` tensors.

    Raises:
        NonFiniteError: NaN or Inf appeared, with the step and the sample ids.
    """
    if wants_gradient(x, *context):
        return _Reverse.apply(call, x, *context)
    with torch.no_grad(), call.environment():
        end = walk(call, x, context)
        check_finite(call, x, end, context)
    return end


def states(call: Call, x: Tensor, context: Context) -> list[Tensor]:
    """The state before the first row and after every row: K + 1 tensors [B, C, H, W].

    Differentiable as ``reverse`` is, for losses that look at the way and not only at its end.
    """
    if wants_gradient(x, *context):
        return list(_States.apply(call, x, *context).unbind(0))
    visited = [x.detach()]
    with torch.no_grad(), call.environment():
        walk(call, visited[0], context, lambda k, state: visited.append(state))
        check_finite(call, visited[0], visited[-1], context)
    return visited


def walk(
    call: Call, x: Tensor, context: Context, visit: Callable[[int, Tensor], None] | None = None
) -> Tensor:
    """Run the table from state ``x`` [B, C, H, W] without a graph and return the end state.

    ``visit(k, x)`` is shown the state after every row ``k``.
    """
    rows, register = call.executor.rows(call.process, x, context, call.noise), None
    for k in range(len(call.process.table)):
        x, register = rows.forward(k, x, register)
        if visit is not None:
            visit(k, x)
    return x


@dataclass
class Trajectory:
    """End state of a walk and what the adjoint needs: each row's input state, and the tapes of kept rows."""

    end: Tensor
    states: list[Tensor] = field(default_factory=list)
    tapes: dict[int, object] = field(default_factory=dict)


def record(call: Call, x: Tensor, context: Context) -> Trajectory:
    """As ``walk``, recording what the memory plan says."""
    rows = call.executor.rows(call.process, x, context, call.noise)
    kept = rows.kept(_rows_to_keep(call, x, context))
    trajectory, register = Trajectory(x), None
    for k in range(len(call.process.table)):
        trajectory.states.append(x)
        if k in kept:
            x, register, tape = rows.forward_keeping(k, x, register)
            trajectory.tapes[k] = tape
        else:
            x, register = rows.forward(k, x, register, vjp_follows=True)
    trajectory.end = x
    return trajectory


def _rows_to_keep(call: Call, x: Tensor, context: Context) -> frozenset[int]:
    rows, cost = [k for k, row in enumerate(call.process.table.rows) if row.calls_something], 0
    if call.plan.measures and rows:
        key = (tuple(x.shape), x.dtype, x.device, call.process.denoiser.dtype)
        if key not in call.costs:
            call.costs[key] = _bytes_per_row(call, rows[-1], x, context)
        cost = call.costs[key]
    return call.plan.rows_kept(rows, cost, x.device, call.executor.nbytes)


def _bytes_per_row(call: Call, k: int, x: Tensor, context: Context) -> int:
    # Measured once per shape on a real step: no formula knows what a user's network saves.
    weights = [tensor for network in call.process.networks() for tensor in network.state_dict().values()]
    with count_saved_bytes(x, *weights) as saved:
        tape = linearize(call.process, k, x, context, call.noise)
    del tape
    return saved.total + x.nbytes


def adjoint(
    call: Call, trajectory: Trajectory, context: Context, v: Tensor, v_states: Tensor | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """Cotangents of the initial state and of every context tensor, for ``v`` of the end state.

    ``v_states[k]`` is the cotangent that a loss puts on the state before row ``k`` itself. Kept tapes are used up.
    """
    rows, w = call.executor.rows(call.process, trajectory.states[0], context, call.noise), None
    totals: list[Tensor | None] = [None] * len(context)
    for k in reversed(range(len(call.process.table))):
        x, tape = trajectory.states[k], trajectory.tapes.pop(k, None)
        v, v_context, w = rows.vjp(k, x, tape, v, w)
        for i, part in enumerate(v_context):
            if part is not None:
                total = totals[i]
                totals[i] = part if total is None else total + part
        v = v if v_states is None else v + v_states[k]
    return v, totals


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *context: Tensor) -> Tensor:
        return _recorded(ctx, call, x, context).end

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return _gradients(ctx, v, None)


class _States(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *context: Tensor) -> Tensor:
        trajectory = _recorded(ctx, call, x, context)
        return torch.stack([*trajectory.states, trajectory.end])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return _gradients(ctx, v[-1], v[:-1])


def _recorded(ctx: Any, call: Call, x: Tensor, context: Context) -> Trajectory:
    ctx.save_for_backward(x, *context)
    x = x.detach()
    detached = tuple(tensor.detach() for tensor in context)
    with call.environment():
        trajectory = record(call, x, detached)
        check_finite(call, x, trajectory.end, detached)
    ctx.call, ctx.context = call, detached
    # Not the whole trajectory: a node that holds its own output is never freed.
    ctx.states, ctx.tapes = trajectory.states, trajectory.tapes
    return trajectory


def _gradients(ctx: Any, v: Tensor, v_states: Tensor | None) -> tuple[Any, ...]:
    ctx.call.process.require_current()
    with ctx.call.environment():
        v_x, v_context = adjoint(ctx.call, Trajectory(v, ctx.states, ctx.tapes), ctx.context, v, v_states)
    if not bool(torch.isfinite(v_x).all()):
        check_cotangent(v, ctx.call.sample_ids)
        bad = ~torch.isfinite(v_x).flatten(1).all(1)
        samples = named(ctx.call.sample_ids, bad)
        raise NonFiniteError(f"the gradient of the purification is NaN or Inf for {samples}")
    return (None, v_x, *v_context)


def check_finite(call: Call, start: Tensor, end: Tensor, context: Context) -> None:
    """Raise NonFiniteError naming the first bad step and the samples, if ``end`` is not finite.

    Non-finite values persist once they appear, so one look at the end suffices; only then is the walk repeated
    (the noise is a function, so it goes the same way) to find where they began.
    """
    if bool(torch.isfinite(end).all()):
        return

    before = start

    def look(k: int, x: Tensor) -> None:
        nonlocal before
        bad = ~torch.isfinite(x).flatten(1).all(1)
        if bool(bad.any()):
            raise NonFiniteError(
                f"NaN or Inf appeared at step {k} (t = {call.process.table.rows[k].t:g}) for "
                f"{named(call.sample_ids, bad)}: {culprit(call.process, k, before, context, call.noise)}"
            )
        before = x.clone()  # a recorded row writes into the same memory again

    walk(call, start, context, look)
    raise NonFiniteError("NaN or Inf appeared in the purified image but not when the run was repeated")
