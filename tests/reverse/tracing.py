"""A recorder for the CPU that is as unforgiving as a CUDA graph.

Work is recorded as the list of tensor operations it issues. A replay runs these operations on the same memory and no
Python; operations that wait for the device are refused while recording. Two things that go wrong on a GPU without a
word are made to show: memory that nobody holds any more is poisoned before every replay, because the pool would give
it to another recording; and operations in the second lane must not touch what the first lane uses after the fork.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from fastpure.errors import CaptureError
from fastpure.reverse.recorder import WARM_UPS, Recorder

WAITING = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "lift_fresh", "masked_select", "unique")
"""Operations that read values on the host or bring values from there."""


_ALONE = torch.empty(1)
COUNTING = torch._C._storage_Use_Count(_ALONE.untyped_storage()._cdata) - 1
"""References that counting references adds."""


@dataclass
class Operation:
    """One operation with aliases of its tensors: they hold the memory, not the tensors of autograd."""

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    reads: set[int]
    writes: set[int]


@dataclass
class Trace:
    """What one work issued, and the memory it took."""

    operations: list[Operation] = field(default_factory=list)
    made: dict[int, Tensor] = field(default_factory=dict)

    def replay(self) -> None:
        for operation in self.operations:
            result = operation.run(*operation.args, **operation.kwargs)
            for output, value in zip(operation.outputs, tensors_in(result), strict=False):
                if output.data_ptr() != value.data_ptr():
                    output.copy_(value)


class Listener(TorchDispatchMode):
    def __init__(self, recorder: TracingRecorder, trace: Trace) -> None:
        super().__init__()
        self.recorder, self.trace = recorder, trace

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        masks = name == "index" and any(t.dtype == torch.bool for t in tensors_in(args[1]))
        if name in WAITING or masks:
            raise CaptureError(f"operation not permitted when stream is capturing: {name}")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = {storage_of(t) for t in tensors_in((args, kwargs))}
        outputs = [t.detach() for t in tensors_in(result)]
        mutable = func._schema.is_mutable
        for output in outputs:
            if storage_of(output) not in inputs:
                self.trace.made.setdefault(storage_of(output), output.detach())
        if "empty" in name or (not mutable and all(storage_of(t) in inputs for t in outputs)):
            return result  # memory without an operation, or a view
        written = inputs if mutable else set()
        operation = Operation(
            func,
            *tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs)),
            [] if mutable else outputs,
            inputs,
            written | {storage_of(t) for t in outputs},
        )
        self.recorder.check_lanes(operation, name)
        self.trace.operations.append(operation)
        return result


class TracingRecorder(Recorder):
    """See the module; ``made`` counts recordings over all recorders."""

    made = 0
    bytes_each = 1000

    @staticmethod
    def reason_against() -> str | None:
        return None

    def __init__(self, device: torch.device) -> None:
        self.traces: list[Trace] = []
        self.free: list[Tensor] = []
        self.lane: set[int] | None = None
        self.current: Trace | None = None
        self.used: tuple[set[int], set[int]] = (set(), set())
        self.beside_count = 0

    def record(self, *works: Callable[[], None], warm: bool = False) -> list[Callable[[], None]]:
        for _ in range(0 if warm else WARM_UPS):
            for work in works:
                work()
        replays = [self._record(work) for work in works]
        self._settle()
        return replays

    def _settle(self) -> None:
        """Find out which of the memory made in recordings nobody holds any more."""
        known: dict[int, int] = {}
        for trace in self.traces:
            for operation in trace.operations:
                for tensor in (*operation.outputs, *tensors_in((operation.args, operation.kwargs))):
                    known[storage_of(tensor)] = known.get(storage_of(tensor), 0) + 1
        self.free = [
            tensor
            for trace in self.traces
            for address, tensor in trace.made.items()
            if torch._C._storage_Use_Count(address) - COUNTING == known.get(address, 0) + 1  # `made` itself
            and tensor.is_floating_point()
        ]

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        trace = self.current = Trace()
        try:
            with Listener(self, trace):
                work()
        finally:
            self.current = None
        self.traces.append(trace)
        TracingRecorder.made += 1

        def replay() -> None:
            with torch.no_grad():
                for tensor in self.free:
                    tensor.fill_(math.nan)
                trace.replay()

        return replay

    def follow(self) -> None:
        pass

    def fork(self) -> int:
        return len(self.current.operations) if self.current else 0

    @contextmanager
    def beside(self, mark: object) -> Iterator[None]:
        if self.current is not None:
            since = self.current.operations[mark:]
            self.used = (
                {address for operation in since for address in operation.reads},
                {address for operation in since for address in operation.writes},
            )
            self.lane, self.beside_count = set(), self.beside_count + 1
        yield
        self.lane = None

    def check_lanes(self, operation: Operation, name: str) -> None:
        """Raise if an operation of the second lane could meet one of the first."""
        if self.lane is None:
            return
        reads, writes = self.used
        if operation.reads & writes or operation.writes & (reads | writes):
            raise AssertionError(f"{name} in the second lane races with the first")

    @property
    def nbytes(self) -> int:
        return self.bytes_each * len(self.traces)


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    return (
        tensor.untyped_storage()._cdata
    )  # the address of the storage, which `made` keeps from being used again
