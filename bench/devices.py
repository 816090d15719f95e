"""What devices can do: matrix rates, bandwidth, launch costs. Each figure says where it comes from."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """Rates a model of a step is held against.

    Fields:
        matrix: floating-point operations per second of a large matrix product, by precision.
        bandwidth: bytes per second of a large copy, reads and writes counted.
        gap: seconds between two kernels of a captured graph.
        launch: seconds the host needs to issue one operation eagerly (Python and dispatcher included).
        source: where the figures come from.
    """

    name: str
    matrix: dict[str, float]
    bandwidth: float
    gap: float
    launch: float
    source: str

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e12:.4g}" for name, rate in self.matrix.items())
        return (
            f"matrix TFLOP/s: {rates}; copy {self.bandwidth / 1e12:.4g} TB/s; gap {1e6 * self.gap:.3g} us, launch "
            f"{1e6 * self.launch:.3g} us ({self.source})"
        )


DEVICES: dict[str, Device] = {
    "h200": Device(
        "NVIDIA H200",
        {"bf16": 790e12, "tf32": 400e12, "fp32": 51e12},
        bandwidth=4.3e12,
        gap=1.0e-6,
        launch=7e-6,
        source="bf16 rate and copy as stated by the project's design; tf32, fp32, gap and launch are assumed",
    ),
    "a100": Device(
        "NVIDIA A100 80GB",
        {"bf16": 250e12, "tf32": 125e12, "fp32": 19e12},
        bandwidth=1.7e12,
        gap=1.0e-6,
        launch=7e-6,
        source="all assumed, from 80 % of the data sheet",
    ),
}

MATRIX = 2048
COPY = 1 << 26


def _median(run: object, repeats: int = 5) -> float:
    assert callable(run)
    run()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def measured_here() -> Device:
    """This machine's CPU, measured now: matrix products, a copy, and the cost of one small operation."""
    a = torch.randn(MATRIX, MATRIX)
    matrix = {"fp32": 2 * MATRIX**3 / _median(lambda: a @ a)}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        half = a.bfloat16()
        matrix["bf16"] = 2 * MATRIX**3 / _median(lambda: half @ half)
    source, target = torch.ones(COPY), torch.empty(COPY)
    bandwidth = 2 * 4 * COPY / _median(lambda: target.copy_(source))
    small = torch.ones(8)

    def calls() -> None:
        for _ in range(1000):
            small.add_(1.0)

    launch = _median(calls) / 1000
    return Device("this CPU", matrix, bandwidth, gap=launch, launch=launch, source="measured now")
