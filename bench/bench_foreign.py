"""A user's own U-Net through ``from_module``: a gradient step with its weights as constants, and as torch does it.

python -m bench.bench_foreign [width [batch [repeats]]]
pytest bench/bench_foreign.py            width 16 under pytest-benchmark
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from bench.measured import measure
from fastpure import Denoiser
from fastpure.baselines import interleave, table
from fastpure.nets import denoiser as denoiser_file
from fastpure.reverse.memory import count_saved_bytes
from tests.nets.plain_unet import plain_unet

STYLES = {"DDPM's style": False, "guided-diffusion's style": True}
CONSTANTS, TORCH = "constants", "torch"
Call = Callable[[Tensor], Tensor]


def outputs(network: nn.Module) -> dict[str, Call]:
    """The network's output for a batch, by the wrapped denoiser and by torch's own autograd."""
    denoiser = Denoiser.from_module(network, image_shape=(3, 32, 32))
    steps = denoiser.conditioning([100.0], [100], [0.9], [0.4])  # type: ignore[arg-type]

    def constants(leaf: Tensor) -> Tensor:
        return denoiser.noise_pred(leaf, steps, 0)

    def torchs(leaf: Tensor) -> Tensor:
        with mock.patch.object(denoiser_file, "ConstantWeights", nullcontext):
            return constants(leaf)

    return {CONSTANTS: constants, TORCH: torchs}


def gradient(call: Call, x: Tensor, v: Tensor) -> Callable[[], Tensor]:
    def step() -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(call(leaf), leaf, v)[0]

    return step


@pytest.mark.parametrize("name", [CONSTANTS, TORCH])
@pytest.mark.parametrize("style", STYLES)
def test_gradient(benchmark, style, name):
    x, v = torch.randn(2, 2, 3, 32, 32)
    call = outputs(plain_unet(STYLES[style], width=16))[name]
    measure(benchmark, f"gradient of a foreign network, {style}, width 16, B = 2", gradient(call, x, v))


def main(width: int = 64, batch: int = 4, repeats: int = 15) -> None:
    x, v = torch.randn(2, batch, 3, 32, 32)
    for style, guided in STYLES.items():
        network = plain_unet(guided, width=width)
        calls, kept = outputs(network), []
        for name, call in calls.items():
            with count_saved_bytes(*network.parameters()) as counter:
                call(x.clone().requires_grad_(True))
            kept.append(f"{name} {counter.total / 2**20 / batch:.1f} MiB")
        timings = interleave({name: gradient(call, x, v) for name, call in calls.items()}, repeats)
        title = f"{style}, width {width}, B = {batch}; kept per image: {', '.join(kept)}"
        print(table(timings, TORCH, title), end="\n\n")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
