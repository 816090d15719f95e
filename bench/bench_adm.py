"""The ADM network: gradient against plain checkpointing, and one purification step at full ImageNet size.

    python -m bench.bench_adm                 # exact gradient, 50 M parameters at 32x32, B = 2, 4 steps
    python -m bench.bench_adm --imagenet      # one step with its gradient at 256x256, 553 M parameters: seconds, memory
    pytest bench/bench_adm.py                 # a narrow network under pytest-benchmark

The baselines run the same network on torch's own operations and torch's own autograd.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastpure as fp
from bench.measured import measure
from fastpure.baselines import interleave, ratio, table
from fastpure.baselines.plain_network import Loop
from fastpure.nets import frozen, fused

NETWORK, BATCH, STEPS, DT = "iddpm-cifar10", 2, 4, 1e-3
OURS, RECOMPUTE = "fastpure, store", "fastpure, recompute"
PLAIN, CHECKPOINT = "plain autograd, keep everything", "checkpoint every step, frozen"
NARROW: dict[str, Any] = {
    "architecture": "adm",
    "image_size": 16,
    "model_channels": 32,
    "widths": (32, 64),
    "n_blocks": 1,
    "attn_resolutions": (8,),
    "legacy_attention": True,
    "learned_sigma": True,
}
"""Under pytest-benchmark."""


class OnPlainOperations(nn.Module):
    """The network with torch's own convolution, GroupNorm, SiLU, attention and pooling."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        with (
            mock.patch.object(fused, "usable", return_value=False),
            mock.patch.object(frozen, "saves_nothing_for", return_value=False),
            mock.patch.object(frozen, "can_pack", return_value=False),
            mock.patch.object(frozen, "attention", F.scaled_dot_product_attention),
            mock.patch.object(frozen, "mean_down", lambda image: F.avg_pool2d(image, 2)),
        ):
            return self.network(x, labels)[:, : self.channels]


def gradients(network: str | dict[str, Any] = NETWORK) -> dict[str, Callable[[], Tensor]]:
    denoiser = fp.Denoiser.from_config(network).frozen()
    x = torch.rand(BATCH, *denoiser.image_shape)
    v = torch.randn(x.shape)
    noise = torch.randn(STEPS, *x.shape)
    method = fp.methods.coup_unguided(t=STEPS * DT, dt=DT, clip_output=False)

    def ours(memory: str) -> Callable[[], Tensor]:
        purifier = fp.Purifier(denoiser, method, memory=memory)

        def run() -> Tensor:
            leaf = x.clone().requires_grad_(True)
            return torch.autograd.grad((purifier(leaf) * v).sum(), leaf)[0]

        return run

    plain = OnPlainOperations(denoiser.network, x.shape[1]).eval()

    def baseline(recompute: bool) -> Callable[[], Tensor]:
        loop = Loop(plain, method.table(), noise, None, recompute=recompute)
        return lambda: loop.gradient(2 * x - 1, v)

    return {
        OURS: ours("store"),
        RECOMPUTE: ours("recompute"),
        PLAIN: baseline(False),
        CHECKPOINT: baseline(True),
    }


@cache
def narrow() -> dict[str, Callable[[], Tensor]]:
    return gradients(NARROW)


@pytest.mark.parametrize("name", [OURS, RECOMPUTE, PLAIN, CHECKPOINT])
def test_gradient(benchmark, name):
    measure(benchmark, f"exact gradient, narrow ADM, B = {BATCH}, {STEPS} steps", narrow()[name])


def imagenet() -> None:
    """DiffPure's network: one Euler step and its gradient for one image."""
    denoiser = fp.Denoiser.from_config("adm-imagenet256").frozen()
    method = fp.methods.coup_unguided(t=1e-3, dt=1e-3)
    purifier = fp.Purifier(denoiser, method)
    x = torch.rand(1, 3, 256, 256, requires_grad=True)
    for name, call in (
        ("forward", lambda: purifier(x.detach())),
        ("forward and gradient", lambda: torch.autograd.grad(purifier(x).square().sum(), x)),
    ):
        begin = time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:<24}{seconds:8.1f} s   peak so far {peak:5.1f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--imagenet", action="store_true", help="one step at 256x256 instead")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.imagenet:
        return imagenet()
    cases = gradients()
    timings = interleave(cases, options.turns)
    print(table(timings, OURS, f"exact gradient, {NETWORK}, B = {BATCH}, {STEPS} steps, fp32"))
    print(f"\ncheckpointing / fastpure  {ratio(timings, CHECKPOINT, OURS):.2f}")


if __name__ == "__main__":
    main()
