"""One row of a sampler and its transpose: the extension against the same formula written in torch.

    python -m bench.bench_row
    pytest bench/bench_row.py

"torch" is the formula as one would write it by hand for speed: coefficients as numbers, updates in place.
With noise, "torch" draws by torch.randn_like, which is cheaper than what is promised (values per sample,
whatever the batch); "torch, same noise" is the library's own reference, which keeps the promise.

Rows without noise are bound by memory and by the cost of a call, so below 1e5 elements a few torch calls are
faster, by microseconds per step. The extension serves them all the same: a choice by size would let the size of
a batch change the last bit of an image.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from bench.bench_noise import CALLS, several
from bench.measured import measure
from fastpure.baselines.timing import interleave, ratio
from fastpure.kernels import NoiseKeys, affine_row, affine_row_vjp, use_backend
from fastpure.schedule import KERNEL_COLUMNS, KERNEL_WIDTH

SHAPES = {"1e4": (156, 1, 8, 8), "1e5": (33, 3, 32, 32), "1e6": (326, 3, 32, 32)}
A, B, C, D = 1.01, -0.25, 0.1, 0.3
EXT, TORCH, REFERENCE = "extension", "torch", "torch, same noise"
KINDS = (
    "row: a x + b e",
    "row: a x + b e + c g",
    "row with noise",
    "row with noise, clipped",
    "transposed row",
)


def table(noise: bool, clip: bool) -> torch.Tensor:
    row = {"a": A, "b": B, "c": C, "d": D * noise, "alpha": 0.9, "sigma": 0.43, "clip": float(clip)}
    matrix = torch.zeros(1, KERNEL_WIDTH)
    for name, value in row.items():
        matrix[0, KERNEL_COLUMNS.index(name)] = value
    return matrix


def by_hand(kind: str, x: torch.Tensor, e: torch.Tensor, g: torch.Tensor) -> Callable[[], object]:
    """The formula in torch."""
    if kind == KINDS[0]:
        return lambda: torch.mul(x, A).add_(e, alpha=B)
    if kind == KINDS[1]:
        return lambda: torch.mul(x, A).add_(e, alpha=B).add_(g, alpha=C)
    if kind == KINDS[2]:
        return lambda: torch.mul(x, A).add_(e, alpha=B).add_(g, alpha=C).add_(torch.randn_like(x), alpha=D)
    if kind == KINDS[4]:
        return lambda: (torch.mul(x, A), torch.mul(x, B), torch.mul(x, C))

    def clipped() -> torch.Tensor:
        x0 = torch.sub(x, e, alpha=0.43).div_(0.9).clamp_(-1, 1)
        used = torch.sub(x, x0, alpha=0.9).div_(0.43)
        return torch.mul(x, A).add_(used, alpha=B).add_(g, alpha=C).add_(torch.randn_like(x), alpha=D)

    return clipped


def by_kernel(kind: str, x: torch.Tensor, e: torch.Tensor, g: torch.Tensor) -> Callable[[], object]:
    """The library's operation."""
    noise = NoiseKeys.make(1, list(range(len(x)))) if "noise" in kind else None
    matrix, step = table(noise is not None, "clipped" in kind), torch.tensor([0])

    if kind == KINDS[4]:
        wanted = {"x": None, "noise_pred": None, "want_guidance": True, "want_register": False}
        return lambda: affine_row_vjp(x, table=matrix, step=step, **wanted)
    guidance = None if kind == KINDS[0] else g
    return lambda: affine_row(x, e, guidance, table=matrix, step=step, noise=noise)


def by_reference(run: Callable[[], object]) -> Callable[[], object]:
    """The same by the torch reference."""

    def forced() -> object:
        with use_backend("reference"):
            return run()

    return forced


def cases(kind: str, size: str) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    x, e, g = (torch.randn(SHAPES[size], generator=generator) for _ in range(3))
    found = {EXT: by_kernel(kind, x, e, g), TORCH: by_hand(kind, x, e, g)}
    if "noise" in kind:
        found[REFERENCE] = by_reference(found[EXT])
    return found


@pytest.mark.parametrize("name", [EXT, TORCH])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SHAPES)
def test_row(benchmark, size, kind, name):
    measure(benchmark, f"{kind}, {size} elements", cases(kind, size)[name], calls=CALLS)


def main(repeats: int = 41) -> None:
    print(f"{torch.get_num_threads()} threads; above 1 in the last column the extension is faster")
    print(f"{'elements':<10}{'kind':<26}{'case':<20}{'median us':>11}{'min us':>10}{'vs extension':>14}")
    with torch.no_grad():
        for size in SHAPES:
            for kind in KINDS:
                timings = interleave({k: several(v) for k, v in cases(kind, size).items()}, repeats, warmup=3)
                for timing in timings:
                    print(
                        f"{size:<10}{kind:<26}{timing.name:<20}{timing.median * 1e6 / CALLS:>11.1f}"
                        f"{min(timing.seconds) * 1e6 / CALLS:>10.1f}{ratio(timings, timing.name, EXT):>14.2f}"
                    )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
