"""The processor: its name, and the rate of its products, which the arithmetic of every case is held against.

The rate is the better of two, a large matrix product and a large 3x3 convolution, as torch computes them: they go
through different libraries, of which on some processors one is several times slower than the other. Operations are
nominal: a convolution that the library does by fewer (Winograd) shows a higher rate than the processor has.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets.products import computes
from ..purify.precision import PRECISIONS
from .timing import Clock, Timing

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16", "sve", "bf16")
"""What of a processor's features decides the speed of products, by Linux's names."""


@final
@dataclass(frozen=True)
class Processor:
    """The CPU of this machine.

    Fields:
        flags: those of ``FLAGS`` that it has; empty where the system does not tell.
        cores: those that this process may use.
    """

    name: str
    flags: tuple[str, ...]
    cores: int

    @staticmethod
    def here() -> Processor:
        fields: dict[str, str] = {}
        try:
            for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
        except OSError:
            pass
        has = set(fields.get("flags", fields.get("Features", "")).split())
        # Only Linux has the affinity; elsewhere a process may use every core.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        name = fields.get("model name") or platform.processor() or platform.machine()
        return Processor(name, tuple(flag for flag in FLAGS if flag in has), cores)

    def __str__(self) -> str:
        return f"{self.name}, {self.cores} cores ({' '.join(self.flags) or 'features unknown'})"


@final
@dataclass(frozen=True)
class Probe:
    """One product to be timed: ``run`` does ``flops`` floating-point operations."""

    name: str
    precision: str
    flops: int
    run: Callable[[], object]


@final
@dataclass(frozen=True)
class Rate:
    """How fast a product was, in the turns of the cases that it is compared with."""

    name: str
    precision: str
    flops: int
    timing: Timing

    def per_second(self, clock: Clock = "wall") -> float:
        """Floating-point operations per second at the median turn; by processor time per second of one thread."""
        return self.flops / statistics.median(self.timing.by(clock))


def probes(precision: str, device: torch.device) -> tuple[Probe, ...]:
    """The two products in ``precision``; none where this processor computes them only by emulation.

    An emulated product of this size takes minutes, and no case comes near a rate that nobody would want.
    """
    if not _computes(precision, device):
        return ()
    chosen, large = PRECISIONS[precision], device.type != "cpu"
    side, batch, channels, size = (8192, 64, 512, 64) if large else (2048, 8, 256, 32)

    def tensor(*shape: int) -> Tensor:
        values = torch.randn(*shape, device=device, dtype=chosen.network)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    def product(multiply: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
        with chosen.environment(device), torch.no_grad():
            return multiply(a, b)

    matrices = tensor(side, side), tensor(side, side)
    images = tensor(batch, channels, size, size), tensor(channels, channels, 3, 3)
    convolve = partial(F.conv2d, padding=1)
    return (
        Probe("matrix product", precision, 2 * side**3, partial(product, torch.matmul, *matrices)),
        Probe(
            "3x3 convolution",
            precision,
            2 * 9 * channels**2 * batch * size**2,
            partial(product, convolve, *images),
        ),
    )


def _computes(precision: str, device: torch.device) -> bool:
    """Whether products in ``precision`` are the processor's own, or at least made of its own."""
    kind = PRECISIONS[precision].network
    return device.type != "cpu" or computes(kind)


def fastest(rates: Iterable[Rate], precision: str, clock: Clock = "wall") -> Rate | None:
    """The product whose rate is the processor's in ``precision``; None if none was measured."""
    found = [rate for rate in rates if rate.precision == precision]
    return max(found, key=lambda rate: rate.per_second(clock), default=None)


def share(
    case: Timing, flops: float, rates: Iterable[Rate], precision: str, clock: Clock = "wall"
) -> float | None:
    """Of the processor's rate in ``precision``, the share that a case doing ``flops`` reaches.

    The median over the turns of (rate of the case) / (rate of the faster product in the same turn); None if the rate
    was not measured.
    """
    rate = fastest(rates, precision, clock)
    if rate is None:
        return None
    pairs = zip(case.by(clock), rate.timing.by(clock), strict=True)
    return flops / rate.flops * statistics.median(product / own for own, product in pairs)
