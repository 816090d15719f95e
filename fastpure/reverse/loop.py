"""The one loop that walks a table, with or without recording for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import NonFiniteError, named
from .blame import culprit
from .memory import MemoryPlan, count_saved_bytes
from .noise import NoiseSource
from .rows import rows_of
from .step import Context, Process, linearize


@dataclass
class Trajectory:
    """End state of a walk and what the backward pass needs: each row's input state, and tapes of kept rows."""

    end: Tensor
    states: list[Tensor] = field(default_factory=list)
    tapes: dict[int, object] = field(default_factory=dict)


def walk(
    process: Process,
    x: Tensor,
    context: Context,
    noise: NoiseSource,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Run the table from state ``x`` [B, C, H, W] without a graph and return the end state.

    ``visit(k, x)`` is shown the state after every row ``k``.
    """
    rows, register = rows_of(process, x, context, noise), None
    for k in range(len(process.table)):
        x, register = rows.forward(k, x, register)
        if visit is not None:
            visit(k, x)
    return x


def record(
    process: Process,
    x: Tensor,
    context: Context,
    noise: NoiseSource,
    plan: MemoryPlan,
    costs: dict[tuple[object, ...], int],
) -> Trajectory:
    """As ``walk``, recording what ``plan`` says. ``costs`` remembers the measured bytes per step by shape."""
    rows = rows_of(process, x, context, noise)
    kept = rows.kept(_rows_to_keep(process, x, context, noise, plan, costs))
    trajectory, register = Trajectory(x), None
    for k in range(len(process.table)):
        trajectory.states.append(x)
        if k in kept:
            x, register, tape = rows.forward_keeping(k, x, register)
            trajectory.tapes[k] = tape
        else:
            x, register = rows.forward(k, x, register, pulled=True)
    trajectory.end = x
    return trajectory


def _rows_to_keep(
    process: Process,
    x: Tensor,
    context: Context,
    noise: NoiseSource,
    plan: MemoryPlan,
    costs: dict[tuple[object, ...], int],
) -> frozenset[int]:
    rows = [k for k, row in enumerate(process.table.rows) if row.calls_network]
    cost = 0
    if plan.measures and rows:
        key = (tuple(x.shape), x.dtype, x.device, process.denoiser.dtype)
        if key not in costs:
            costs[key] = _bytes_per_row(process, rows[-1], x, context, noise)
        cost = costs[key]
    return plan.rows_kept(rows, cost, x.device, process.graphs.nbytes if process.graphs is not None else 0)


def _bytes_per_row(process: Process, k: int, x: Tensor, context: Context, noise: NoiseSource) -> int:
    # Measured once per shape on a real step: no formula knows what a user's network saves.
    networks = [process.denoiser, *(process.guidance.networks() if process.guidance else ())]
    weights = [tensor for network in networks for tensor in network.state_dict().values()]
    with count_saved_bytes(x, *weights) as saved:
        tape = linearize(process, k, x, context, noise)
    del tape
    return saved.total + x.nbytes


def check_finite(
    process: Process, start: Tensor, end: Tensor, context: Context, noise: NoiseSource, sample_ids: Tensor
) -> None:
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
                f"NaN or Inf appeared at step {k} (t = {process.table.rows[k].t:g}) for {named(sample_ids, bad)}: "
                f"{culprit(process, k, before, context, noise)}"
            )
        before = x.clone()  # a recorded row writes into the same memory again

    walk(process, start, context, noise, look)
    raise NonFiniteError("NaN or Inf appeared in the purified image but not when the run was repeated")
