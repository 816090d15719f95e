"""What one purification costs by method, on the bundled digits network: interleaved, as ratios to DiffPure.

    python -m bench.bench_methods            table of interleaved ratios
    pytest bench/bench_methods.py            the same cases with 4 images under pytest-benchmark

The cost follows the number of network calls, of which a step that differentiates the network makes two.
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
from fastpure.methods import Method

BATCH = 32
REFERENCE, ADBM = "diffpure, 100 steps", "adbm, DDIM-5"
GOAL = 15.0


@functools.cache
def denoiser() -> fp.Denoiser:
    return fp.load_denoiser("digits")


@functools.cache
def classifier() -> torch.nn.Module:
    return fp.load_classifier("digits")


METHODS: dict[str, Callable[[], Method]] = {
    REFERENCE: fp.methods.diffpure,
    ADBM: fp.methods.adbm,
    "coup": lambda: fp.methods.coup(classifier()),
    "gdmp, 4 x 36": fp.methods.gdmp,
    "gdmp, ssim": lambda: fp.methods.gdmp(metric="ssim"),
    "agdm, 70": lambda: fp.methods.agdm(classifier()),
    "addt, DDPM 101": lambda: fp.methods.addt("ddpm"),
    "addt, VP 202": lambda: fp.methods.addt("vp"),
    "addt, EDM 99": lambda: fp.methods.addt("edm"),
    "likelihood_max": fp.methods.likelihood_max,
    "adp": fp.methods.adp,
}


def run(method: Method, batch: int = BATCH) -> Callable[[], torch.Tensor]:
    purifier = fp.Purifier(denoiser(), method)
    x = torch.rand(batch, *denoiser().image_shape, generator=torch.Generator().manual_seed(0))
    return lambda: purifier(x)


@pytest.mark.parametrize("name", METHODS)
def test_purification(benchmark, name):
    measure(benchmark, "one purification, digits network, B = 4", run(METHODS[name](), batch=4))


def main(repeats: int = 5) -> None:
    cases = {name: make() for name, make in METHODS.items()}
    timings = interleave({name: run(method) for name, method in cases.items()}, repeats)
    calls = {name: f"{method.network_calls} calls" for name, method in cases.items()}
    print(table(timings, REFERENCE, f"one purification, digits network, B = {BATCH}, fp32", calls))
    print(f"\nDiffPure / ADBM {ratio(timings, REFERENCE, ADBM):.1f}   (goal: at least {GOAL:g})")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
