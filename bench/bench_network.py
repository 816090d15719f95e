"""The denoising network: time of a pass and of a gradient, bytes kept for the backward pass, against plain modules.

    python -m bench.bench_network                        # official CIFAR-10 size, B = 2, 4 steps, float32
    python -m bench.bench_network --network ddpmpp-digits --batch 64       # a narrow one: as a program, and in blocks
    python -m bench.bench_network --convolutions         # the ways to pull a gradient back through one convolution
    pytest bench/bench_network.py                        # the digits network under pytest-benchmark

All candidates take turns within each round and medians are compared, so that ratios survive a busy machine. The
"limit" is arithmetic only: the floating-point operations of the passes at the rate of a large matrix product,
measured in the same rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.measured import measure
from fastpure import Denoiser
from fastpure.baselines.plain_network import PlainDDPMpp
from fastpure.baselines.timing import interleave, ratio
from fastpure.nets import NETWORKS, DDPMpp, frozen, fused
from fastpure.nets.narrow import Programs
from fastpure.nets.packed import PackedWeight
from fastpure.reverse.memory import count_saved_bytes

Call = Callable[[], object]
LABEL = 99.9
MATRIX = 2048


def matrix_product() -> Call:
    """Four products of 2048 x 2048 matrices."""
    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    return lambda: [a @ b for _ in range(4)]


def chain(network: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """As many dependent calls as a purification makes, with everything kept."""
    for _ in range(steps):
        x = x - 0.1 * network(x)
    return x


def gradient(network: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, steps: int) -> Call:
    def call() -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(chain(network, leaf, steps), leaf, v)[0]

    return call


def forward(network: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            return chain(network, x, steps)

    return call


def unpacked(call: Call) -> Call:
    """The same with torch's own treatment of convolution weights."""

    def run() -> object:
        with (
            mock.patch.object(frozen, "can_pack", return_value=False),
            mock.patch.object(fused, "can_map", return_value=False),
        ):
            return call()

    return run


def in_blocks(call: Call) -> Call:
    """The same without programs (`fastpure.nets.narrow`): by the fused blocks that wider networks use."""

    def run() -> object:
        with mock.patch.object(Programs, "run", return_value=None):
            return call()

    return run


def kept_megabytes(network: Callable[[Tensor], Tensor], weights: list[Tensor], x: Tensor) -> float:
    """MB that autograd keeps per image and step."""
    with count_saved_bytes(*weights) as counter:
        network(x.clone().requires_grad_(True))
    return counter.total / 1e6 / len(x)


def networks(name: str) -> tuple[DDPMpp, PlainDDPMpp]:
    """Ours and the plain one with the same frozen weights."""
    ours = Denoiser.from_config(name).frozen().network
    assert isinstance(ours, DDPMpp)
    plain = PlainDDPMpp(ours.config).eval().requires_grad_(False)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@cache
def digits() -> tuple[DDPMpp, PlainDDPMpp]:
    return networks("ddpmpp-digits")


@pytest.mark.parametrize("whose", ["fastpure", "plain modules"])
@pytest.mark.parametrize("kind", [forward, gradient], ids=["forward", "gradient"])
def test_network(benchmark, kind, whose):
    ours, plain = digits()
    x, v = torch.randn(2, 64, ours.config.channels, ours.config.image_size, ours.config.image_size)
    row, labels = ours.embedding(torch.tensor([LABEL])), torch.full((64,), LABEL)
    nets = {"fastpure": lambda x: ours.body(x, row), "plain modules": lambda x: plain(x, labels)}
    arguments = (x, v, 4) if kind is gradient else (x, 4)
    group = f"{kind.__name__} of 4 passes, ddpmpp-digits, B = 64"
    measure(benchmark, group, kind(nets[whose], *arguments))


def compare(name: str, batch: int, steps: int, rounds: int) -> None:
    ours, plain = networks(name)
    _, config = NETWORKS[name]
    shape = (batch, config.channels, config.image_size, config.image_size)
    x, v = torch.randn(shape), torch.randn(shape)
    row, labels = ours.embedding(torch.tensor([LABEL])), torch.full((batch,), LABEL)
    nets = {"fastpure": lambda x: ours.body(x, row), "plain modules": lambda x: plain(x, labels)}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(x[:1], labels[:1])
    gflop = counter.get_total_flops() / 1e9
    reference = gradient(nets["plain modules"], x, v, steps)()
    error = (gradient(nets["fastpure"], x, v, steps)() - reference).abs().max() / reference.abs().max()

    candidates = {"matrix product": matrix_product()}
    for label, network in nets.items():
        candidates[f"forward, {label}"] = forward(network, x, steps)
        candidates[f"gradient, {label}"] = gradient(network, x, v, steps)
    for kind in ("forward", "gradient"):
        call = candidates[f"{kind}, fastpure"]
        if ours.programs is not None:
            candidates[f"{kind}, fastpure in blocks"] = call = in_blocks(call)
        candidates[f"{kind}, fastpure unpacked"] = unpacked(call)
    timings = interleave(candidates, rounds)
    rate = 4 * 2 * MATRIX**3 / timings[0].median / 1e9

    print(f"{name}, float32, B = {batch}, {steps} steps, {torch.get_num_threads()} threads, {rounds} rounds")
    print(f"matrix product {rate:.0f} GFLOP/s, one pass {gflop:.2f} GFLOP per image")
    print(f"largest difference of the two gradients, relative: {error:.1e}\n")
    print(f"{'':30}{'ms/image/step':>15}{'of limit':>10}{'of plain':>10}")
    for timing in sorted(timings[1:], key=lambda timing: timing.name):
        kind = timing.name.split(",")[0]
        # The limit is the time of the same arithmetic at the rate of the matrix product of the same turn.
        share = batch * steps * gflop * 1e9 * (1 if kind == "forward" else 2) / (4 * 2 * MATRIX**3)
        of_limit = ratio(timings, timing.name, "matrix product") / share
        of_plain = ratio(timings, timing.name, f"{kind}, plain modules")
        each = 1e3 * timing.median / batch / steps
        print(f"{timing.name:30}{each:15.2f}{of_limit:10.3f}{of_plain:10.3f}")
    print("\nkept for the backward pass, MB per image and step")
    for label, (network, weights) in {
        "fastpure": (nets["fastpure"], list(ours.parameters())),
        "plain modules": (nets["plain modules"], list(plain.parameters())),
    }.items():
        print(f"{label:30}{kept_megabytes(network, weights, x):15.1f}")


CONVOLUTIONS = [(128, 128, 32, 3), (256, 128, 32, 3), (256, 128, 32, 1), (256, 256, 16, 3), (512, 256, 16, 3),
                (256, 256, 8, 3), (512, 256, 8, 3), (256, 256, 4, 3), (512, 256, 4, 3)]  # fmt: skip


def convolutions(batch: int, rounds: int) -> None:
    """Pulling a gradient back through one convolution, ms; several weights in turn, as in a network."""
    print(
        f"B = {batch}, {torch.get_num_threads()} threads; NHWC unless said otherwise; inputs, outputs, size, kernel"
    )
    for inputs, outputs, size, kernel in CONVOLUTIONS:
        padding, count = kernel // 2, 8
        weights = [torch.randn(outputs, inputs, kernel, kernel) for _ in range(count)]
        v = torch.randn(batch, outputs, size, size)
        calls = _pullbacks(weights, v, (batch, inputs, size, size), padding)
        product, *timings = interleave({"matrix product": matrix_product(), **calls}, rounds)
        rate = 4 * 2 * MATRIX**3 / product.median
        limit = 2 * batch * inputs * outputs * (size * kernel) ** 2 / rate
        listed = "  ".join(f"{timing.name} {1e3 * timing.median / count:.2f}" for timing in timings)
        print(f"{(inputs, outputs, size, kernel)!s:20} limit {1e3 * limit:.2f}  {listed}", flush=True)


def _pullbacks(weights: list[Tensor], v: Tensor, shape: tuple[int, ...], padding: int) -> dict[str, Call]:
    nhwc = torch.channels_last
    w_nhwc = [weight.contiguous(memory_format=nhwc) for weight in weights]
    flipped = [weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=nhwc) for weight in weights]
    v_nhwc = v.contiguous(memory_format=nhwc)
    caches = [PackedWeight() for _ in weights]

    def backward(ws: list[Tensor], v: Tensor, placeholder: Callable[[], Tensor]) -> Call:
        geometry = ([1, 1], [padding] * 2, [1, 1], False, [0, 0], 1)
        operator = torch.ops.aten.convolution_backward
        return lambda: [operator(v, placeholder(), w, None, *geometry, [True, False, False]) for w in ws]

    return {
        "NCHW backward": backward(weights, v, lambda: v.new_empty(shape)),
        "backward, empty input": backward(w_nhwc, v_nhwc, lambda: torch.empty(shape, memory_format=nhwc)),
        "expanded input": backward(w_nhwc, v_nhwc, lambda: v.new_empty(1).expand(shape)),
        "grad.conv2d_input": lambda: [
            torch.nn.grad.conv2d_input(list(shape), w, v_nhwc, padding=padding) for w in w_nhwc
        ],
        "flipped": lambda: [F.conv2d(v_nhwc, w, padding=padding) for w in flipped],
        "packed": lambda: [c.pull_back(v_nhwc, w) for c, w in zip(caches, w_nhwc, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=list(NETWORKS), default="ddpmpp-cifar10")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--convolutions", action="store_true", help="compare ways to differentiate one convolution"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.convolutions:
        with torch.no_grad():
            convolutions(options.batch, options.rounds)
    else:
        compare(options.network, options.batch, options.steps, options.rounds)


if __name__ == "__main__":
    main()
