"""The exact gradient of a purification at official size, against every way its users compute it today.

    python -m bench.bench_gradient            table of interleaved ratios
    pytest bench/bench_gradient.py            the same cases under pytest-benchmark

DDPM++ of the official CIFAR-10 size with random weights, fp32, B = 2, four Euler steps (COUP without guidance);
the baselines run a plain nn.Module port with the same weights.
The arithmetic limit is 74.2 GFLOP per image and step, two network passes, at the rate of a large matrix product
measured in the same run.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest
import torch

import fastpure as fp
from bench.baselines.loops import LoopGradient
from bench.baselines.plain_ddpmpp import PlainDDPMpp
from bench.interleave import interleave, ratio, table
from fastpure.nets import CONFIGS
from fastpure.reverse.memory import count_saved_bytes
from fastpure.reverse.step import linearize

BATCH, STEPS, DT = 2, 4, 1e-3
GFLOP_PER_IMAGE_AND_STEP = 74.2
MM = 3072
OURS, RECOMPUTE = "fastpure, store", "fastpure, recompute"
ADJOINT, FROZEN_ADJOINT = "torchsde adjoint as DiffPure uses it", "torchsde adjoint, frozen weights"
CHECKPOINT, PLAIN = "checkpoint every step, frozen", "plain autograd, keep everything"
LIMIT = "matrix product"


@functools.cache
def denoiser() -> fp.Denoiser:
    return fp.Denoiser.from_config("ddpmpp-cifar10", seed=0)


@functools.cache
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    return x, torch.randn(x.shape, generator=generator)


def purifier_gradient(memory: str) -> Callable[[], torch.Tensor]:
    method = fp.methods.coup_unguided(t=STEPS * DT, dt=DT, clip_output=False)
    purifier = fp.Purifier(denoiser(), method, memory=memory)
    x, v = inputs()

    def run() -> torch.Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad((purifier(leaf) * v).sum(), leaf)[0]

    return run


def baseline_gradient(name: str) -> Callable[[], torch.Tensor]:
    x, v = inputs()
    x, shape = 2 * x - 1, tuple(x.shape[1:])
    # Each its own copy: requires_grad is switched on in one of them.
    network = PlainDDPMpp(CONFIGS["ddpmpp-cifar10"]).eval()
    network.load_state_dict(denoiser().network.state_dict())
    if name in (ADJOINT, FROZEN_ADJOINT):
        from bench.baselines.torchsde_adjoint import AdjointGradient

        frozen = name == FROZEN_ADJOINT
        gradient: Callable[..., torch.Tensor] = AdjointGradient(network, shape, STEPS * DT, DT, frozen)
    else:
        steps = fp.methods.coup_unguided(t=STEPS * DT, dt=DT).table()
        gradient = LoopGradient(network, steps, shape, recompute=name == CHECKPOINT)
    return lambda: gradient(x, v)


def matrix_product() -> Callable[[], torch.Tensor]:
    a = torch.randn(MM, MM)
    return lambda: a @ a


CASES: dict[str, Callable[[], Callable[[], torch.Tensor]]] = {
    OURS: lambda: purifier_gradient("store"),
    RECOMPUTE: lambda: purifier_gradient("recompute"),
    PLAIN: lambda: baseline_gradient(PLAIN),
    CHECKPOINT: lambda: baseline_gradient(CHECKPOINT),
    FROZEN_ADJOINT: lambda: baseline_gradient(FROZEN_ADJOINT),
    ADJOINT: lambda: baseline_gradient(ADJOINT),
    LIMIT: matrix_product,
}


def kept_megabytes() -> float:
    """MB autograd keeps per image and step in ours."""
    method = fp.methods.coup_unguided(t=STEPS * DT, dt=DT)
    purifier = fp.Purifier(denoiser(), method)
    process = purifier._process("fp32", torch.device("cpu"))
    x = 2 * inputs()[0] - 1
    weights = list(purifier.denoiser.state_dict().values())
    with count_saved_bytes(x, *weights) as saved:
        tape = linearize(process, 0, x, (), None)
    del tape
    return saved.total / BATCH / 1e6


@pytest.mark.parametrize("name", CASES)
def test_gradient(benchmark, name):
    benchmark.group = "exact gradient, official size, B = 2, 4 steps"
    benchmark.pedantic(CASES[name](), rounds=3, warmup_rounds=1)


def main(repeats: int = 5) -> None:
    timings = interleave({name: case() for name, case in CASES.items()}, repeats)
    by_name = {timing.name: timing for timing in timings}
    rate = 2 * MM**3 / by_name[LIMIT].median / 1e9
    limit = GFLOP_PER_IMAGE_AND_STEP * BATCH * STEPS / rate
    print(table(timings, OURS, f"exact gradient, official DDPM++, B = {BATCH}, {STEPS} steps, fp32"))
    print(f"\nmatrix rate {rate:.0f} GFLOP/s; arithmetic limit {limit:.3f} s")
    print(f"fastpure, store / limit          {by_name[OURS].median / limit:.3f}   (goal: at most 1.10)")
    print(f"torchsde as DiffPure / fastpure  {ratio(timings, ADJOINT, OURS):.2f}   (goal: at least 7)")
    print(f"checkpointing / fastpure         {ratio(timings, CHECKPOINT, OURS):.2f}   (goal: at least 1.4)")
    print(f"kept per image and step          {kept_megabytes():.1f} MB   (goal: at most 60)")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
