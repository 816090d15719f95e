"""The exact gradient of a purification at official size, against every way its users compute it today.

    python -m bench.bench_gradient                     fp32 and bf16, B = 2, 4 steps
    python -m bench.bench_gradient --no-compile        without torch.compile: about 10 minutes on 2 cores
    python -m bench.bench_gradient --network ddpmpp-digits --no-compile      a quick try: seconds
    python -m bench.bench_gradient --precision fp32 --repeats 5 --device cuda
    pytest bench/bench_gradient.py                     the digits size under pytest-benchmark

The comparison itself is `fastpure bench`; this adds the arithmetic limit (two network passes per step at the
processor's product rate, measured in the same turns) and the goals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch

import fastpure as fp
from bench.measured import measure
from fastpure.baselines import Comparison, Table, compare, ratio
from fastpure.baselines.comparison import Cases, Networks
from fastpure.baselines.processor import fastest
from fastpure.cli.bench import show
from fastpure.reverse.memory import count_saved_bytes
from fastpure.reverse.step import linearize

OFFICIAL, BATCH, STEPS = "ddpmpp-cifar10", 2, 4


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


@cache
def small() -> Cases:
    return Cases(Networks("ddpmpp-digits", torch.device("cpu")), batch=64, steps=STEPS)


GRADIENTS: dict[str, Callable[[], Callable[[], torch.Tensor]]] = {
    "fastpure, store": lambda: partial(small().gradient, small().purifier("fp32", "store")),
    "fastpure, recompute": lambda: partial(small().gradient, small().purifier("fp32", "recompute")),
    "keep everything": lambda: partial(small().peer_gradient, small().loop("fp32")),
    "keep everything, NCHW": lambda: partial(
        small().peer_gradient, small().loop("fp32", channels_last=False)
    ),
    "checkpoint": lambda: partial(small().peer_gradient, small().loop("fp32", recompute=True)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient(benchmark, name):
    measure(benchmark, f"exact gradient, digits size, B = 64, {STEPS} steps", GRADIENTS[name]())


def goals(table: Table) -> None:
    """Print what the project promised for CPUs beside what came out."""
    rows = {row.name: row for row in table.rows}
    timings = [row.timing for row in table.rows]
    times = partial(ratio, timings)
    adjoint = "torchsde adjoint as DiffPure, fp32"
    for name in rows:
        if "torch.compile" in name:
            print(f"{name}: {times(name, 'fastpure, store, ' + name.split(', ')[-1]):.2f} times ours")
    if "fastpure, store, fp32" in rows:
        ours = "fastpure, store, fp32"
        rate = fastest(table.rates, "fp32")
        if rate is not None:
            limit = table.flops / rate.per_second()
            print(
                f"{rate.name} {rate.per_second() / 1e9:.0f} GFLOP/s, arithmetic limit {limit:.2f} s; ours at best "
                f"{min(rows[ours].timing.seconds) / limit:.3f}"
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
    tables = compare(what)
    for title, table in tables.items():
        show(f"{title}, {options.network}, B = {options.batch}, {STEPS} steps, {options.device}", table)
    if official:
        goals(tables["exact gradient"])
        print(f"kept per image and step, fp32: {kept_megabytes():.1f} MB (goal 60)")


if __name__ == "__main__":
    main()
