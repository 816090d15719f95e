"""Counter-based normals: the extension, the same formula in torch, and torch's own generator.

    python -m bench.bench_noise
    pytest bench/bench_noise.py

torch.randn is no substitute (its numbers depend on the batch and on what was drawn before); it stands here as
the speed of a generator that promises nothing. A turn is several calls, so that no case pays for the caches
and the spinning threads that the one before it leaves behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from bench.measured import measure
from fastpure.baselines.timing import interleave, ratio
from fastpure.kernels import NoiseKeys, Stream, backend_report, philox_normal, use_backend

SHAPES = {"1e4": (156, 1, 8, 8), "1e5": (33, 3, 32, 32), "1e6": (326, 3, 32, 32)}
EXT, TORCH, RANDN, LAST, DOUBLE = (
    "extension",
    "same formula in torch",
    "torch.randn",
    "extension, channels_last",
    "extension, float64",
)
CASES = (EXT, LAST, DOUBLE, TORCH, RANDN)
CALLS = 5


def case(name: str, size: str) -> Callable[[], torch.Tensor]:
    batch, *shape = SHAPES[size]
    keys = NoiseKeys.make(1, list(range(batch)))
    options = {LAST: {"memory_format": torch.channels_last}, DOUBLE: {"dtype": torch.float64}}.get(name, {})

    def run() -> torch.Tensor:
        if name == RANDN:
            return torch.randn(batch, *shape)
        return philox_normal(keys, 3, Stream.REVERSE, tuple(shape), **options)

    def run_reference() -> torch.Tensor:
        with use_backend("reference"):
            return run()

    return run_reference if name == TORCH else run


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", SHAPES)
def test_noise(benchmark, size, name):
    measure(benchmark, f"normals, {size} elements", case(name, size), calls=CALLS)


def several(run: Callable[[], object]) -> Callable[[], None]:
    """One turn."""

    def turn() -> None:
        for _ in range(CALLS):
            run()

    return turn


def main(repeats: int = 21) -> None:
    extension = backend_report()["extension"]
    if not extension["available"]:
        raise SystemExit(f"nothing to compare: {extension['reason']}")
    print(f"{torch.get_num_threads()} threads, instruction sets {extension['build'].get('instruction_sets')}")
    print(f"{'normals':<10}{'case':<28}{'median us':>12}{'min us':>10}{'ns/element':>12}{'vs extension':>14}")
    for size, shape in SHAPES.items():
        timings = interleave({name: several(case(name, size)) for name in CASES}, repeats, warmup=3)
        for timing in timings:
            best, typical = min(timing.seconds) / CALLS, timing.median / CALLS
            print(
                f"{size:<10}{timing.name:<28}{typical * 1e6:>12.1f}{best * 1e6:>10.1f}"
                f"{typical * 1e9 / torch.Size(shape).numel():>12.2f}"
                f"{ratio(timings, timing.name, EXT):>14.2f}"
            )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
