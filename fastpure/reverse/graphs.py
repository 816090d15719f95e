"""Recorded steps: found by what they depend on, padded to, bounded in number and bytes, and given up if impossible.

A recording costs a second and pays where launching a step's operations takes longer than running them: small
batches, and half precision up to large ones. It gives the same bits as launching them, because it is the same
operations. A batch that is smaller than a recorded one (but not by half) is filled up with zeros under a
sentinel id and its result cut off; larger ones are recorded for themselves.

What the memory plan keeps for the backward pass is recorded too, each row in memory of its own, but only from the
third gradient of a shape on: it takes two recordings per row, which a single gradient does not earn back. Until
then kept rows are launched as they are, and so are, in the first passes, rows that differ in numbers a recording
fixes (``capture.RowKind``). If such memory is filled again before it is read (two purifications of
one shape whose backward passes come later), the older one recomputes.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ..errors import CaptureError
from ..kernels import OPS, NoiseKeys, forced_backend
from .capture import Family, Recorded, RowKind, Slot, kind_of, layout_of
from .noise import NoiseSource
from .recorder import RECORDERS
from .step import Context, Cotangents, EagerRows, Execution, Executor, Process, Rows

FIRST_KEEPING = 3
"""The gradient of a family from which on kept rows are recorded."""

FIRST_APART = 5
"""The pass (purification, or backward pass) of a family from which on rows that differ in numbers are recorded."""

ROWS_APART = 256
"""Most recordings of one family; rows of further kinds are launched, not recorded."""

ASKED_FOR = Execution("graph", "asked for")


@dataclass(frozen=True)
class GraphLimits:
    """Bounds of the cache.

    Attributes:
        families: most batches, each of one shape and process.
        nbytes: most bytes of all together; None is half the device's memory.
    """

    families: int = 8
    nbytes: int | None = None

    def bytes_on(self, device: torch.device) -> int:
        """The bound in bytes."""
        if self.nbytes is not None:
            return self.nbytes
        return (
            torch.cuda.get_device_properties(device).total_memory // 2 if device.type == "cuda" else 1 << 30
        )


@final
class Graphs(Executor):
    """Records steps and replays them: least recently used batches leave first.

    Args:
        execution: what is planned.
        insist: raise CaptureError where something cannot be recorded, instead of going on eagerly.
        limits: of what is held.
    """

    manner: ClassVar[str] = "steps are replayed"

    def __init__(
        self,
        execution: Execution = ASKED_FOR,
        insist: bool = True,
        limits: GraphLimits | None = None,
    ) -> None:
        self.execution = execution
        self.insist = insist
        self.limits = limits or GraphLimits()
        self.lock = threading.RLock()
        self._families: OrderedDict[tuple[Any, int], Family] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        # Recordings can be neither copied nor pickled.
        return Graphs(self.execution, self.insist, self.limits)

    def __reduce__(self) -> tuple[type[Graphs], tuple[Any, ...]]:
        return Graphs, (self.execution, self.insist, self.limits)

    def __len__(self) -> int:
        return len(self._families)

    def __repr__(self) -> str:
        return f"Graphs({self.execution}, insist={self.insist}, {self.limits})"

    @classmethod
    def reason_against(cls, device: torch.device | None) -> str | None:
        """See ``Executor.reason_against``."""
        if device is None:
            reasons = {kind: recorder.reason_against() for kind, recorder in RECORDERS.items()}
            known = None in reasons.values()
            return None if known else ", ".join(f"{kind}: {reason}" for kind, reason in reasons.items())
        if device.type not in RECORDERS:
            return f"graphs need a CUDA device, the networks are on {device}"
        return RECORDERS[device.type].reason_against()

    @property
    def nbytes(self) -> int:
        """Bytes of buffers and pools, all families together."""
        return sum(family.nbytes for family in self._families.values())

    def clear(self) -> None:
        """Forget every recording: weights moved."""
        self._families.clear()

    def rows(self, process: Process, x: Tensor, context: Context, noise: NoiseSource) -> Rows:
        """The rows of ``process`` on recordings for a batch like ``x``; eager ones once recording was given up."""
        eager = EagerRows(process, context, noise)
        if self.execution.backend == "eager" or x.device.type not in RECORDERS:
            return eager
        if process.weights.hooked():  # a replay runs no Python
            return eager
        with self.lock:
            family = self._family(process, x, context)
            family.passes += 1
        return CapturedRows(self, family, eager, len(x))

    def _family(self, process: Process, x: Tensor, context: Context) -> Family:
        batch = len(x)
        paddable = all(part.dim() > 0 and len(part) == batch for part in context)
        signature = _signature(process, x, context, paddable)
        fitting = [
            size
            for known, size in self._families
            if known == signature and (size == batch or (paddable and batch < size < 2 * batch))
        ]
        key = (signature, min(fitting, default=batch))
        if key not in self._families:
            self._families[key] = Family(RECORDERS[x.device.type](x.device), process, x, context)
        self._families.move_to_end(key)
        self.trim(x.device)
        return self._families[key]

    def trim(self, device: torch.device) -> None:
        """Drop the least recently used families, but never the last one, until the bounds hold."""
        bound = self.limits.bytes_on(device)
        while len(self) > 1 and (len(self) > self.limits.families or self.nbytes > bound):
            self._families.popitem(last=False)

    def room_for(self, nbytes: int, device: torch.device) -> bool:
        """Whether the bound leaves ``nbytes`` to the family used last, the others dropped if need be."""
        bound = self.limits.bytes_on(device)
        while len(self) > 1 and self.nbytes + nbytes > bound:
            self._families.popitem(last=False)
        return self.nbytes + nbytes <= bound

    def give_up(self, error: CaptureError) -> None:
        """Go on eagerly from here, and say so; raise where graphs are insisted on.

        Recordings are forgotten in both cases: they hold memory, and a recorder that has failed records no more.
        """
        self.clear()
        if self.insist:
            raise error
        if self.execution.backend == "eager":
            return
        self.execution = Execution("eager", f"the steps could not be recorded: {error}")
        warnings.warn(f"fastpure runs without CUDA graphs: {error}", RuntimeWarning, stacklevel=2)


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """From filling the buffers to taking the result, no other thread may touch them."""

    @wraps(method)
    def run(self: CapturedRows, *args: Any, **kwargs: Any) -> Any:
        with self._graphs.lock:
            return method(self, *args, **kwargs)

    return run


class CapturedRows(Rows):
    """Rows replayed on a family's buffers; what cannot be recorded is done eagerly, with the same result."""

    def __init__(self, graphs: Graphs, family: Family, eager: EagerRows, batch: int) -> None:
        self._graphs, self._family, self._eager, self._batch = graphs, family, eager, batch
        self._loaded: NoiseKeys | None = None
        self._token = object()

    @_alone
    def forward(
        self, k: int, x: Tensor, register: Tensor | None, *, vjp_follows: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Rows.forward``."""
        kind = self._kind(k)
        if kind is None:
            return self._eager.forward(k, x, register, vjp_follows=vjp_follows)
        self._load(k, x, register)
        try:
            recorded = self._family.forward(kind, k)
            if vjp_follows:  # now, because a backward pass runs in a thread of autograd's
                self._family.vjp(kind, k)
        except CaptureError as error:
            self._graphs.give_up(error)
            return self._eager.forward(k, x, register)
        recorded.replay()
        return self._state(recorded)

    @_alone
    def forward_keeping(
        self, k: int, x: Tensor, register: Tensor | None
    ) -> tuple[Tensor, Tensor | None, object | None]:
        """See ``Rows.forward_keeping``; what is kept is a slot and the number of its filling."""
        kind = self._kind(k)
        if kind is None:
            return self._eager.forward_keeping(k, x, register)
        if k not in self._family.slots:
            if self._family.gradients < FIRST_KEEPING:
                return self._eager.forward_keeping(k, x, register)
            if not self._graphs.room_for(self._family.slot_bytes, x.device):
                return *self.forward(k, x, register, vjp_follows=True), None
        self._load(k, x, register)
        try:
            slot = self._family.slot(kind, k)
        except CaptureError as error:
            self._graphs.give_up(error)
            return self._eager.forward_keeping(k, x, register)
        slot.owner += 1
        slot.forward.replay()
        return *self._state(slot.forward), (slot, slot.owner)

    @_alone
    def vjp(self, k: int, x: Tensor, tape: Any, v: Tensor, w: Tensor | None) -> Cotangents:
        """See ``Rows.vjp``."""
        kind = self._kind(k)
        recorded = self._family.vjps.get(kind) if kind is not None else None
        if isinstance(tape, tuple):
            slot, owner = tape
            assert isinstance(slot, Slot)
            if slot.owner == owner and kind is not None:
                slot.owner += 1  # autograd's buffers in it are spent
                recorded = slot.vjp
        elif tape is not None:
            recorded = None
        if recorded is None:
            return self._eager.vjp(k, x, tape, v, w)
        self._load(k, x, None)
        _fill(self._family.v, v)
        if w is not None:
            _fill(self._family.w, w)
        recorded.replay()
        found = [self._taken(recorded, f"context {i}") for i in range(len(self._family.context))]
        v_x = self._taken(recorded, "v")
        assert v_x is not None
        return v_x, tuple(found), self._taken(recorded, "w")

    @_alone
    def kept(self, chosen: frozenset[int]) -> frozenset[int]:
        """What was chosen and what has its memory already: that is no longer free for anything else."""
        self._family.gradients += 1
        return chosen | frozenset(self._family.slots)

    def _kind(self, k: int) -> RowKind | None:
        """The kind of row ``k`` if it is to be replayed."""
        if self._graphs.execution.backend == "eager":
            return None
        kind = kind_of(self._eager.process, k, self._eager.noise)
        known, passes = self._family.forwards, self._family.passes
        if kind is None or kind in known:
            return kind
        early = bool(kind.numbers) and passes < FIRST_APART
        return None if early or len(known) >= ROWS_APART else kind

    def _load(self, k: int, x: Tensor, register: Tensor | None) -> None:
        """Write what row ``k`` reads into the buffers."""
        family, process = self._family, self._eager.process
        family.recorder.follow()
        keys = self._eager.noise.row(k)
        assert isinstance(keys, NoiseKeys)
        if keys is not self._loaded or family.filled_by is not self._token:
            family.keys.seed.copy_(keys.seed)
            _fill(family.keys.sample_ids, keys.sample_ids)
            _fill(family.keys.draws, keys.draws)
            for buffer, part in zip(family.context, self._eager.context, strict=True):
                _fill(buffer, part)
            if self._batch < family.batch:
                family.fill_up(self._batch)
            self._loaded, family.filled_by = keys, self._token
        family.step.copy_(process.steps[k : k + 1])
        _fill(family.x, x)
        if register is not None:
            _fill(family.register, register)

    def _state(self, recorded: Recorded) -> tuple[Tensor, Tensor | None]:
        x = self._taken(recorded, "x")
        assert x is not None
        return x, self._taken(recorded, "register")

    def _taken(self, recorded: Recorded, name: str) -> Tensor | None:
        """A copy: the next replay overwrites the buffer."""
        buffer = recorded.outputs.get(name)
        return None if buffer is None else buffer[: self._batch].clone()


def _fill(buffer: Tensor, value: Tensor) -> None:
    """Copy into the first entries; those behind stay as they are."""
    (buffer if len(value) == len(buffer) else buffer[: len(value)]).copy_(value)


def _kernel_choices() -> tuple[Any, ...]:
    """torch's settings by which it chooses between kernels that round differently."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        cudnn.enabled,
        cudnn.deterministic,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        str(cuda.preferred_blas_library()),
        str(cuda.preferred_linalg_library()),
        getattr(cuda.matmul, "allow_fp16_accumulation", False),
        cuda.fp16_bf16_reduction_math_sdp_allowed(),
        tuple(getattr(torch._C, "_get_sdp_priority_order", tuple)()),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


def _signature(process: Process, x: Tensor, context: Context, paddable: bool) -> tuple[Any, ...]:
    """Everything but the batch that a recording depends on, as a value."""
    parts = tuple((tuple(part.shape[1:] if paddable else part.shape), part.dtype) for part in context)
    networks = process.guidance.networks() if process.guidance else ()
    weights = tuple(t.data_ptr() for net in networks for t in (*net.parameters(), *net.buffers()))
    settings = (
        process.denoiser.network.training,
        tuple(forced_backend(name) for name in OPS),
        torch.is_autocast_enabled(x.device.type),
        torch.get_autocast_dtype(x.device.type),
        *_kernel_choices(),
    )
    return (process, tuple(x.shape[1:]), x.dtype, x.device, layout_of(x), parts, weights, settings)
