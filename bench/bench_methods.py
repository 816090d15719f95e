"""What one purification costs by method, on the bundled digits network: interleaved, as ratios to DiffPure.

    python -m bench.bench_methods            table of interleaved ratios
    pytest bench/bench_methods.py            the same cases under pytest-benchmark

The cost follows the number of network calls; likelihood maximisation adds a backward pass to each of its own.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest
import torch

import fastpure as fp
from fastpure.baselines.timing import interleave, ratio, table
from fastpure.methods import Method

BATCH = 32
REFERENCE, ADBM = "diffpure, 100 steps", "adbm, DDIM-5"
GOAL = 15.0


@functools.cache
def denoiser() -> fp.Denoiser:
    return fp.load_denoiser("digits")


def methods() -> dict[str, Method]:
    classifier = fp.load_classifier("digits")
    return {
        REFERENCE: fp.methods.diffpure(),
        ADBM: fp.methods.adbm(),
        "coup": fp.methods.coup(classifier),
        "gdmp, 4 x 36": fp.methods.gdmp(),
        "gdmp, ssim": fp.methods.gdmp(metric="ssim"),
        "agdm, 70": fp.methods.agdm(classifier),
        "addt, DDPM 101": fp.methods.addt("ddpm"),
        "addt, VP 202": fp.methods.addt("vp"),
        "addt, EDM 99": fp.methods.addt("edm"),
        "likelihood_max": fp.methods.likelihood_max(),
        "adp": fp.methods.adp(),
    }


def run(method: Method) -> Callable[[], torch.Tensor]:
    purifier = fp.Purifier(denoiser(), method)
    x = torch.rand(BATCH, *denoiser().image_shape, generator=torch.Generator().manual_seed(0))
    return lambda: purifier(x)


@pytest.mark.parametrize("name", methods())
def test_purification(benchmark, name):
    benchmark.group = f"one purification, digits network, B = {BATCH}"
    benchmark.pedantic(run(methods()[name]), rounds=3, warmup_rounds=1)


def main(repeats: int = 5) -> None:
    cases = methods()
    timings = interleave({name: run(method) for name, method in cases.items()}, repeats)
    calls = {name: f"{method.table().n_network_calls} calls" for name, method in cases.items()}
    print(table(timings, REFERENCE, f"one purification, digits network, B = {BATCH}, fp32", calls))
    print(f"\nDiffPure / ADBM {ratio(timings, REFERENCE, ADBM):.1f}   (goal: at least {GOAL:g})")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
