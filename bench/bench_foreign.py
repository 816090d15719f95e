"""A user's own U-Net through ``from_module``: a gradient step with its weights as constants, and as torch does it.

python -m bench.bench_foreign [width [batch [repeats]]]
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from unittest import mock

import torch
from torch import Tensor

from fastpure import Denoiser
from fastpure.baselines import interleave, table
from fastpure.nets import denoiser as denoiser_file
from fastpure.reverse.memory import count_saved_bytes
from tests.nets.plain_unet import plain_unet


def main(width: int = 64, batch: int = 4, repeats: int = 15) -> None:
    x, v = torch.randn(2, batch, 3, 32, 32)
    for guided in (False, True):
        network = plain_unet(guided, width=width)
        denoiser = Denoiser.from_module(network, image_shape=(3, 32, 32))
        steps = denoiser.conditioning([100.0], [100], [0.9], [0.4])  # type: ignore[arg-type]

        def output(leaf: Tensor, denoiser: Denoiser = denoiser, steps=steps) -> Tensor:
            return denoiser.noise_pred(leaf, steps, 0)

        def torchs(leaf: Tensor, output=output) -> Tensor:
            with mock.patch.object(denoiser_file, "ConstantWeights", nullcontext):
                return output(leaf)

        cases, kept = {"constants": output, "torch": torchs}, {}
        for name, call in cases.items():
            with count_saved_bytes(*network.parameters()) as counter:
                call(x.clone().requires_grad_(True))
            kept[name] = f"{name} {counter.total / 2**20 / batch:.1f} MiB"

        def step(call) -> Tensor:
            leaf = x.clone().requires_grad_(True)
            return torch.autograd.grad(call(leaf), leaf, v)[0]

        timings = interleave({name: lambda c=call: step(c) for name, call in cases.items()}, repeats)
        style = "guided-diffusion's style" if guided else "DDPM's style"
        title = f"{style}, width {width}, B = {batch}; kept per image: {', '.join(kept.values())}"
        print(table(timings, "torch", title), end="\n\n")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
