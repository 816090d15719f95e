"""Convolutions on packed weights against oneDNN's treatment of ordinary ones, both directions.

    python -m bench.bench_packing                   float32 and bfloat16, B = 1, 2, 8 and 32: a minute on one thread
    pytest bench/bench_packing.py

The ratios in ``fastpure/nets/packed.py`` are this command's; they are processor time, packed over ordinary, forward and
backward, the ways taking turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.measured import measure
from fastpure.baselines.timing import interleave, ratio
from fastpure.nets.packed import PackedWeight

SHAPES = [
    (32, 32, 32, 3),
    (64, 64, 16, 3),
    (128, 128, 32, 3),
    (256, 256, 16, 3),
    (512, 256, 8, 3),
    (256, 256, 4, 3),
    (128, 64, 16, 1),
    (256, 128, 32, 1),
]
"""Inputs, outputs, pixels along a side, size of the kernel."""

BATCHES = (1, 2, 8, 32)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_OPERATIONS = 40e9
"""Larger convolutions take too long, and reordering weights is nothing beside them."""


def ways(shape: tuple[int, int, int, int], batch: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """Each direction, packed and ordinary."""
    inputs, outputs, side, size = shape

    def image(channels: int) -> Tensor:
        made = torch.randn(batch, channels, side, side).to(dtype)
        return made.contiguous(memory_format=torch.channels_last)

    x, v = image(inputs), image(outputs)
    weight = torch.randn(outputs, inputs, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    padding, packed = [size // 2] * 2, PackedWeight()
    geometry = ([1, 1], padding, [1, 1], False, [0, 0], 1)
    backward = torch.ops.aten.convolution_backward
    return {
        "forward": lambda: torch.conv2d(x, weight, None, 1, padding),
        "forward, packed": lambda: packed.convolve(x, weight, None),
        "backward": lambda: backward(v, x, weight, None, *geometry, [True, False, False])[0],
        "backward, packed": lambda: packed.pull_back(v, weight),
    }


@pytest.mark.parametrize("way", ["forward", "forward, packed", "backward", "backward, packed"])
@pytest.mark.parametrize("shape", [(64, 64, 16, 3), (256, 256, 4, 3)], ids=str)
def test_packing(benchmark, shape, way):
    measure(benchmark, f"convolution {shape}, B = 2", ways(shape, 2, torch.float32)[way])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; packed over ordinary processor time, forward and backward")
    for label, dtype in DTYPES.items():
        print(f"{label:36}" + "".join(f"{f'B = {batch}':14}" for batch in options.batches))
        for shape in SHAPES:
            inputs, outputs, side, size = shape
            found = []
            for batch in options.batches:
                if 2 * batch * inputs * outputs * (side * size) ** 2 > MOST_OPERATIONS:
                    found.append("")
                    continue
                timings = interleave(ways(shape, batch, dtype), options.rounds)
                pair = (ratio(timings, f"{way}, packed", way, clock="cpu") for way in ("forward", "backward"))
                found.append(" ".join(f"{value:.2f}" for value in pair))
            print(f"{', '.join(map(str, shape)):36}" + "".join(f"{text:14}" for text in found), flush=True)


if __name__ == "__main__":
    main()
