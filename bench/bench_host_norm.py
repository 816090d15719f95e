"""GroupNorm+SiLU on the CPU: the host extension against torch's operations, and what that does to a whole gradient.

    python -m bench.bench_host_norm                      # kernels at official and digits shapes
    python -m bench.bench_host_norm --gradient           # and gradients of whole networks, one step
    pytest bench/bench_host_norm.py                      # the digits shapes under pytest-benchmark

The cases take turns. Times of kernels are processor time of this process (all its threads), which other work on the
machine disturbs less than the clock; with one thread (OMP_NUM_THREADS=1) the two would agree on an idle machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.measured import measure
from fastpure import Denoiser
from fastpure.baselines import interleave, ratio, table
from fastpure.baselines.plain_network import PlainDDPMpp
from fastpure.kernels import group_norm_silu, group_norm_silu_vjp, use_backend
from fastpure.nets import NETWORKS, DDPMpp, frozen

Call = Callable[[], object]
SHAPES = [
    (16, 64, 32, 16),
    (2, 128, 32, 32),
    (2, 256, 32, 32),
    (2, 256, 16, 32),
    (2, 512, 8, 32),
    (64, 16, 8, 4),
    (64, 32, 4, 8),
]
"""Images, channels, pixels along a side, groups: cifar10-small at B = 16, the official network at 2, digits at 64."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ELEMENTS = 4_000_000
LABEL = 99.9


def repeated(call: Call, times: int) -> Call:
    return lambda: [call() for _ in range(times)]


def kernels(rounds: int) -> None:
    print(f"{torch.get_num_threads()} threads; microseconds of processor time, smallest of {rounds}")
    print(f"{'B, C, pixels, groups':24}{'dtype':10}{'torch':>8}{'ours':>8}{'ratio':>7}", end="")
    print(f"{'GB/s':>7}{'vjp: torch':>12}{'ours':>8}{'ratio':>7}{'GB/s':>7}")
    for batch, channels, side, groups in SHAPES:
        for label, dtype in DTYPES.items():
            cases = kernel_cases(batch, channels, side, groups, dtype)
            times = max(1, ELEMENTS // (batch * channels * side**2))
            timings = interleave({k: repeated(c, times) for k, c in cases.items()}, rounds)
            best = {timing.name: 1e6 * min(timing.cpu_seconds) / times for timing in timings}
            print(f"{(batch, channels, side, groups)!s:24}{label:10}", end="")
            size = batch * channels * side**2 * dtype.itemsize
            for name, width, moved in (("forward", 8, 2 * size), ("vjp", 12, 3 * size)):  # x, y; v, x, v_x
                gain = ratio(timings, f"{name}, torch", f"{name}, ours", "cpu")
                rate = moved / best[f"{name}, ours"] / 1e3
                print(f"{best[f'{name}, torch']:{width}.0f}{best[f'{name}, ours']:8.0f}{gain:7.2f}", end="")
                print(f"{rate:7.1f}", end="")
            print(flush=True)


CASES = ("forward, torch", "forward, ours", "vjp, torch", "vjp, ours")


def kernel_cases(batch: int, channels: int, side: int, groups: int, dtype: torch.dtype) -> dict[str, Call]:
    x = torch.randn(batch, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
    v, (weight, bias) = torch.randn_like(x), torch.randn(2, channels).to(dtype)
    settings = weight, bias, groups, 1e-6
    _, stats = group_norm_silu(x, *settings)

    def torchs(call: Call) -> Call:
        def run() -> object:
            with use_backend("reference"), torch.no_grad():
                return call()

        return run

    calls = (
        torchs(lambda: frozen.norm_silu(x, *settings)),
        lambda: group_norm_silu(x, *settings),
        torchs(lambda: frozen._norm_silu_vjp(x, v, *settings)),
        lambda: group_norm_silu_vjp(v, x, stats, weight, bias, groups),
    )
    return dict(zip(CASES, calls, strict=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[-2:], ids=str)
def test_kernel(benchmark, shape, dtype, name):
    call = kernel_cases(*shape, DTYPES[dtype])[name]
    measure(benchmark, f"GroupNorm+SiLU, {shape}, {dtype}, {name.split(',')[0]}", call, calls=20)


def gradients(name: str, batch: int, times: int, rounds: int) -> None:
    """One network pass and its gradient, by the extension and by torch's operations, beside plain modules."""
    cases: dict[str, Call] = {}
    for label, dtype in DTYPES.items():
        network = Denoiser.from_config(name).frozen().network.to(dtype)
        assert isinstance(network, DDPMpp)
        config = network.config
        row = network.embedding(torch.tensor([LABEL]))
        x = torch.randn(batch, config.channels, config.image_size, config.image_size).to(dtype)
        call = repeated(_gradient(lambda x, n=network, r=row: n.body(x, r), x), times)
        cases[f"{label}, extension"] = call
        cases[f"{label}, torch's operations"] = _by_reference(call)
        if dtype == torch.float32:
            plain = PlainDDPMpp(config).eval().requires_grad_(False)
            plain.load_state_dict(network.state_dict())
            labels = torch.full((batch,), LABEL)
            cases["float32, plain modules"] = repeated(
                _gradient(lambda x, p=plain, t=labels: p(x, t), x), times
            )
    title = f"{name}, B = {batch}, {times} gradients of one step, {torch.get_num_threads()} threads"
    print("\n" + table(interleave(cases, rounds), "float32, extension", title))


def _gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    v = torch.randn_like(x)

    def call() -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(network(leaf), leaf, v)[0]

    return call


def _by_reference(call: Call) -> Call:
    def run() -> object:
        with use_backend("reference"):
            return call()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gradient", action="store_true", help="also gradients of whole networks")
    parser.add_argument("--network", choices=list(NETWORKS), help="only this network's gradient")
    options = parser.parse_args()
    torch.manual_seed(0)
    kernels(options.rounds)
    if options.gradient or options.network:
        for name, batch, times in (("ddpmpp-digits", 64, 3), ("ddpmpp-cifar10", 2, 1)):
            if options.network in (None, name):
                gradients(name, batch, times, options.rounds)


if __name__ == "__main__":
    main()
