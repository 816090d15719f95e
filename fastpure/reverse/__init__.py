"""The reverse process: one loop, one exact adjoint, for every solver and guidance."""

from __future__ import annotations

import torch

from ..errors import KernelUnavailable, one_of
from .graphs import GraphLimits, Graphs
from .loop import Call, reverse, states
from .memory import MemoryPlan
from .noise import GeneratedNoise, NoiseSource, RecordedNoise, SplitNoise
from .opening import opening, read_under
from .placed import PlacedNoise
from .procedure import Procedure, perform, perform_states
from .step import EagerExecutor, EagerRows, Execution, Executor, Process, Rows
from .watching import Seen, watch

EXECUTORS: dict[str, type[Executor]] = {"graph": Graphs, "eager": EagerExecutor}
"""What carries out the rows, by name. "auto" takes the first that can serve the networks' device; those behind
"eager" are for the asking only."""

OWN_RULE = "the method walks its table by a rule of its own, which is not recorded"

__all__ = [
    "EXECUTORS",
    "Call",
    "EagerExecutor",
    "EagerRows",
    "Execution",
    "Executor",
    "GeneratedNoise",
    "GraphLimits",
    "Graphs",
    "MemoryPlan",
    "NoiseSource",
    "PlacedNoise",
    "Procedure",
    "Process",
    "RecordedNoise",
    "Rows",
    "Seen",
    "SplitNoise",
    "check_backend",
    "executor_for",
    "opening",
    "perform",
    "perform_states",
    "planned",
    "read_under",
    "reverse",
    "states",
    "watch",
]


def planned(backend: str, device: torch.device | None, rows: bool = True) -> Execution:
    """Which executor ``backend`` ("auto" or one of ``EXECUTORS``) means for networks on ``device``, and why.

    ``rows``: the method is a table's rows. A procedure's steps are plain operations, which only "eager" describes.
    Without a device the question is whether there can be one.

    Raises:
        ValueError: another word.
        KernelUnavailable: an executor asked for by name cannot serve.
    """
    one_of("backend", backend, ("auto", *EXECUTORS))
    refused: list[str] = []
    for name in EXECUTORS if backend == "auto" else (backend,):
        executor = EXECUTORS[name]
        against = _reason_against(executor, device, rows)
        if against is None:
            chosen = "; ".join(refused) or f"{executor.manner} on {device}"
            return Execution(name, "asked for" if backend == name else chosen)
        refused.append(against)
    raise KernelUnavailable(
        f"backend={backend!r} was asked for, but {refused[0]}. Use backend='auto' or 'eager'"
    )


def check_backend(backend: str | Executor) -> str | Executor:
    """Return ``backend`` if it is known and something on this machine can carry it out; errors as ``planned``."""
    if not isinstance(backend, Executor):
        planned(backend, None)
    return backend


def executor_for(backend: str | Executor, device: torch.device, rows: bool = True) -> Executor:
    """The executor that ``backend``, a word or one ready made, means for networks on ``device``; see ``planned``."""
    if not isinstance(backend, Executor):
        plan = planned(backend, device, rows)
        return EXECUTORS[plan.backend](plan, backend != "auto")
    against = _reason_against(type(backend), device, rows)
    if against is not None:
        raise KernelUnavailable(
            f"backend={backend!r} was given, but {against}. Use backend='auto' or 'eager'"
        )
    return backend


def _reason_against(executor: type[Executor], device: torch.device | None, rows: bool) -> str | None:
    return executor.reason_against(device) if rows or executor is EagerExecutor else OWN_RULE
