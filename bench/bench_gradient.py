"""The exact gradient of a purification at official size, against every way its users compute it today.

    python -m bench.bench_gradient                     fp32 and bf16, B = 2, 4 steps
    python -m bench.bench_gradient --no-compile        without torch.compile: about 10 minutes on 2 cores
    python -m bench.bench_gradient --network ddpmpp-digits --no-compile      a quick try: seconds
    python -m bench.bench_gradient --precision fp32 --repeats 5 --device cuda
    pytest bench/bench_gradient.py                     the digits size under pytest-benchmark

The comparison itself is `fastpure bench`; this adds the arithmetic limit (74.2 GFLOP per image and step, two network
passes, at the rate of a large matrix product measured before and after) and the goals.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import pytest
import torch

import fastpure as fp
from fastpure.baselines import Comparison, Row, compare
from fastpure.baselines.comparison import Cases, Networks
from fastpure.cli.bench import show
from fastpure.reverse.memory import count_saved_bytes
from fastpure.reverse.step import linearize

OFFICIAL, BATCH, STEPS = "ddpmpp-cifar10", 2, 4
GFLOP_PER_IMAGE_AND_STEP = 74.2
MM = 3072
SMALL = Cases(Networks("ddpmpp-digits", torch.device("cpu")), batch=64, steps=4)


def matrix_rate(repeats: int = 5) -> float:
    """Best floating-point rate of a large float32 matrix product."""
    a = torch.randn(MM, MM)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return 2 * MM**3 / best


def kept_megabytes() -> float:
    """MB autograd keeps per image and step in ours."""
    denoiser = fp.Denoiser.from_config("ddpmpp-cifar10", seed=0)
    purifier = fp.Purifier(denoiser, fp.methods.coup_unguided(t=STEPS * 1e-3, dt=1e-3))
    process = purifier._process("fp32", torch.device("cpu"))
    x = torch.randn(BATCH, 3, 32, 32)
    weights = list(purifier.denoiser.state_dict().values())
    with count_saved_bytes(x, *weights) as saved:
        tape = linearize(process, 0, x, (), None)  # type: ignore[arg-type]
    del tape
    return saved.total / BATCH / 1e6


GRADIENTS = {
    "fastpure, store": partial(SMALL.gradient, SMALL.purifier("fp32", "store")),
    "fastpure, recompute": partial(SMALL.gradient, SMALL.purifier("fp32", "recompute")),
    "keep everything": partial(SMALL.peer_gradient, SMALL.loop("fp32")),
    "checkpoint": partial(SMALL.peer_gradient, SMALL.loop("fp32", recompute=True)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient(benchmark, name):
    benchmark.group = "exact gradient, digits size, B = 64, 4 steps"
    benchmark.pedantic(GRADIENTS[name], rounds=3, warmup_rounds=1)


def goals(rows: dict[str, Row], rate: float, batch: int) -> None:
    """Print what the project promised for CPUs beside what came out."""

    def times(slow: str, fast: str) -> float:
        return rows[slow].timing.median / rows[fast].timing.median

    limit = GFLOP_PER_IMAGE_AND_STEP * 1e9 * batch * STEPS / rate
    adjoint = "torchsde adjoint as DiffPure, fp32"
    for name in rows:
        if "torch.compile" in name:
            print(f"{name}: {times(name, 'fastpure, store, ' + name.split(', ')[-1]):.2f} times ours")
    if "fastpure, store, fp32" in rows:
        ours = "fastpure, store, fp32"
        best = min(rows[ours].timing.seconds)
        print(
            f"matrix rate {rate / 1e9:.0f} GFLOP/s, arithmetic limit {limit:.2f} s; ours at best {best / limit:.3f}"
        )
        print(f"fp32: checkpointing {times('checkpoint every step, frozen, fp32', ours):.2f} (goal 1.4)")
        print(f"fp32: torchsde as DiffPure {times(adjoint, ours):.2f} (goal 7)")
    if "fastpure, store, bf16" in rows:
        ours = "fastpure, store, bf16"
        print(f"bf16: checkpointing in bf16 {times('checkpoint every step, frozen, bf16', ours):.2f}")
        if "checkpoint every step, frozen, fp32" in rows:
            print(
                f"bf16: checkpointing in fp32 {times('checkpoint every step, frozen, fp32', ours):.2f} (goal 2.5)"
            )
        print(f"bf16: torchsde as DiffPure {times(adjoint, ours):.2f} (goal 10)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default=OFFICIAL)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out, which takes minutes"
    )
    options = parser.parse_args()
    what = Comparison(
        options.network,
        options.batch,
        STEPS,
        tuple(options.precision),
        torch_compile=not options.no_compile,
        repeats=options.repeats,
        device=options.device,
    )
    official = options.network == OFFICIAL and options.device == "cpu"
    before = matrix_rate() if official else 0.0
    tables = compare(what)
    for title, rows in tables.items():
        show(f"{title}, {options.network}, B = {options.batch}, {STEPS} steps, {options.device}", rows)
    if official:
        goals({row.name: row for row in tables["exact gradient"]}, max(before, matrix_rate()), options.batch)
        print(f"kept per image and step, fp32: {kept_megabytes():.1f} MB (goal 60)")


if __name__ == "__main__":
    main()
