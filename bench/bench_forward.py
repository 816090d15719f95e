"""What `purifier(x)` costs beyond the bare network calls.

python -m bench.bench_forward
pytest bench/bench_forward.py            the small sizes under pytest-benchmark
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest
import torch

import fastpure as fp
from bench.measured import measure
from fastpure.baselines.timing import interleave, ratio, table

SIZES = {
    "official": ("ddpmpp-cifar10", 2, 4, 1e-3),
    "small CIFAR-10": ("ddpmpp-cifar10-small", 4, 4, 1e-3),
    "digits": ("ddpmpp-digits", 64, 12, 0.0125),
}
GOALS = {"official": 1.05, "digits": 1.15}


@functools.cache
def setting(size: str) -> tuple[fp.Purifier, torch.Tensor]:
    config, batch, steps, dt = SIZES[size]
    denoiser = fp.Denoiser.from_config(config, seed=0)
    method = fp.methods.coup_unguided(t=steps * dt, dt=dt)
    x = torch.rand(batch, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    return fp.Purifier(denoiser, method), x


def purify(size: str) -> Callable[[], object]:
    purifier, x = setting(size)
    return lambda: purifier(x)


def bare_calls(size: str) -> Callable[[], object]:
    """The same network alone, as many times, on embeddings computed beforehand: the strictest comparison."""
    purifier, x = setting(size)
    network, table = purifier.denoiser.network, purifier.method.table()
    with torch.no_grad():
        rows = network.embedding(torch.tensor([row.tau for row in table.rows]))
    state = 2 * x - 1

    @torch.no_grad()
    def run() -> None:
        for k in range(len(rows)):
            network.body(state, rows[k : k + 1])

    return run


@pytest.mark.parametrize("case", [purify, bare_calls], ids=["purifier", "bare network calls"])
@pytest.mark.parametrize("size", ["small CIFAR-10", "digits"])
def test_forward(benchmark, size, case):
    measure(benchmark, f"forward, {size} size", case(size))


def main(repeats: int = 9) -> None:
    for size, goal in GOALS.items():
        cases = {"purifier(x)": purify(size), "bare network calls": bare_calls(size)}
        timings = interleave(cases, repeats)
        print(table(timings, "bare network calls", f"forward, {size} size"))
        print(
            f"overhead {ratio(timings, 'purifier(x)', 'bare network calls'):.3f}   (goal: at most {goal})\n"
        )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
