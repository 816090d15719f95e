"""How much of a trajectory is kept for the backward pass, and how much is recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import mistake

CPU_SHARE = 0.5
"""Part of the available host memory that "auto" may use."""

CUDA_SHARE = 0.8
"""Part of the free device memory that "auto" may use; the rest is for the network's own working set."""


@dataclass(frozen=True)
class MemoryPlan:
    """``memory=`` of a purifier: "auto", "store", "recompute", or a budget in bytes.

    "store" keeps every step's activations (two network passes per gradient), "recompute" keeps states only and
    runs each network again in the backward pass (three), "auto" keeps as many steps as fit.

    Raises:
        ValueError: any other text, or a negative number of bytes.
    """

    choice: str | int = "auto"

    def __post_init__(self) -> None:
        expected = "'auto', 'store', 'recompute' or a number of bytes"
        if isinstance(self.choice, bool) or not isinstance(self.choice, str | int):
            raise TypeError(mistake("memory", expected, f"{type(self.choice).__name__} {self.choice!r}"))
        known = self.choice in ("auto", "store", "recompute")
        if not known and (isinstance(self.choice, str) or self.choice < 0):
            raise ValueError(mistake("memory", expected, repr(self.choice)))

    @property
    def measures(self) -> bool:
        """Whether the plan needs to know what one step costs."""
        return self.choice not in ("store", "recompute")

    def rows_kept(
        self, rows: list[int], bytes_per_row: int, device: torch.device, held: int = 0
    ) -> frozenset[int]:
        """Which of the network rows to keep. The last ones: the backward pass meets and frees them first.

        ``held`` bytes belong to recordings, although torch may count them as idle.
        """
        if self.choice == "store":
            return frozenset(rows)
        if self.choice == "recompute":
            return frozenset()
        budget = available_bytes(device, held) if self.choice == "auto" else int(self.choice)
        n = min(len(rows), budget // max(bytes_per_row, 1))
        return frozenset(rows[len(rows) - n :])


def available_bytes(device: torch.device, held: int = 0) -> int:
    """What "auto" may use on ``device`` right now, in bytes; ``held`` of the idle ones are not for it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(CUDA_SHARE * (free + max(0, idle - held)))
    return int(CPU_SHARE * _host_available())


def _host_available() -> int:
    # A container's limit can be far below what the host has free; the smaller of the two is what we may use.
    with open("/proc/meminfo") as lines:
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            ceiling = limit.read().strip()
            return free if ceiling == "max" else min(free, int(ceiling) - int(used.read()))
    except OSError:
        return free


@dataclass
class SavedBytes:
    """Running total of what autograd saved, counting each storage once."""

    exclude: frozenset[int] = frozenset()
    seen: dict[int, int] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> None:
        """Count ``tensor``."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.exclude:
            self.seen[storage.data_ptr()] = storage.nbytes()

    @property
    def total(self) -> int:
        """Bytes in distinct storages."""
        return sum(self.seen.values())


@contextmanager
def watch_saved(note: Callable[[Tensor], object]) -> Iterator[None]:
    """Inside, ``note`` is handed all that autograd saves, without its history; gradients are what they ever are."""

    def pack(tensor: Tensor) -> Tensor:
        # With its history a saved result holds the operation that saved it, which no collector finds: the whole graph
        # would stay for good. Autograd gives the history back to what it unpacks.
        kept = tensor.detach()
        note(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


@contextmanager
def count_saved_bytes(*constants: Tensor) -> Iterator[SavedBytes]:
    """Count the bytes autograd keeps inside the block, leaving out ``constants`` such as weights."""
    counter = SavedBytes(frozenset(t.untyped_storage().data_ptr() for t in constants))
    with watch_saved(counter.add):
        yield counter
