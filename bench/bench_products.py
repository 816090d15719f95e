"""Products in bfloat16 and float16 in float32 against torch's own, where the processor has none.

    python -m bench.bench_products                  both dtypes and a gradient: five minutes on one thread
    pytest bench/bench_products.py

Processor time, torch's own over ours, the ways taking turns. Where the processor has such products ours are torch's,
and the command says so. The figures in ``fastpure/nets/products.py`` and ``docs/cpu.md`` are this command's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import fastpure as fp
from bench.measured import measure
from fastpure.baselines.timing import interleave, ratio
from fastpure.nets import products
from fastpure.nets.products import computes, product

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = [(32, 32, 3), (64, 16, 3), (128, 8, 3), (64, 16, 1)]
"""Channels, pixels along a side, size of the kernel."""


def torchs_own(call: Callable[[], Any]) -> Any:
    """As if the processor had these products."""
    with mock.patch.object(products, "computes", return_value=True):
        return call()


def both(call: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """Each way."""
    return {"torch": partial(torchs_own, call), "ours": call}


def convolution(
    shape: tuple[int, int, int], dtype: torch.dtype, batch: int
) -> tuple[Callable[[], Tensor], ...]:
    """Forward and backward."""
    channels, side, size = shape
    x = torch.randn(batch, channels, side, side).to(dtype)
    weight = torch.randn(channels, channels, size, size).to(dtype)
    geometry = ([1, 1], [size // 2] * 2, [1, 1], False, [0, 0], 1)
    pull = torch.ops.aten.convolution_backward
    return (
        lambda: product(torch.convolution, x, weight, None, *geometry),
        lambda: product(pull, x, x, weight, None, *geometry, [True, False, False])[0],
    )


def gradient(precision: str, batch: int) -> Callable[[], Tensor]:
    """The exact gradient of a guided purification, the guide and the denoiser in ``precision``."""
    classifier = fp.load_classifier("cifar10-small")
    method = fp.methods.coup(classifier, 0.1, 0.025, scale=16.0, solver="exponential")
    defence = fp.Defense(
        fp.Purifier(fp.load_denoiser("cifar10-small"), method, seed=0, precision=precision), classifier
    )
    x = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return lambda: torch.autograd.grad(defence(x).logsumexp(1).sum(), x)[0]


@pytest.mark.parametrize("way", ["torch", "ours"])
def test_products(benchmark, way):
    forward, _ = convolution((64, 16, 3), torch.bfloat16, 8)
    measure(benchmark, "3x3 convolution in bfloat16, B = 8", both(forward)[way])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="of the convolutions; the gradient's is 8")
    options = parser.parse_args()

    def compare(name: str, call: Callable[[], Any]) -> None:
        timings = interleave(both(call), options.rounds)
        print(f"{name:44}{ratio(timings, 'torch', 'ours', clock='cpu'):8.1f}", flush=True)

    print(f"{torch.get_num_threads()} threads; processor time of torch's own products over ours")
    for name, dtype in DTYPES.items():
        if computes(dtype):
            print(f"{name}: this processor has them, ours are torch's")
            continue
        for shape in SHAPES:
            for direction, call in zip(
                ("forward", "backward"), convolution(shape, dtype, options.batch), strict=True
            ):
                compare(f"{name}  {', '.join(map(str, shape))}  {direction}", call)
        a, b = (torch.randn(size, 512).to(dtype) for size in (256, 512))
        compare(f"{name}  256 x 512 times 512 x 512", partial(product, torch.matmul, a, b))
    if not computes(torch.bfloat16):
        compare("bf16  COUP, exact gradient, 8 images", gradient("bf16", 8))
        timings = interleave({name: gradient(name, 8) for name in ("fp32", "bf16")}, options.rounds)
        print(f"{'  bf16 over fp32':44}{ratio(timings, 'bf16', 'fp32', clock='cpu'):8.2f}")


if __name__ == "__main__":
    main()
