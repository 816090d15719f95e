"""Golden networks, and a way to run a network on plain torch operations only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from fastpure import Denoiser, load_denoiser
from fastpure.nets import DDPMpp, frozen, fused
from tests.golden import FOLDER


def golden_denoiser(name: str) -> Denoiser:
    """The golden network ``name``, frozen, float32."""
    return load_denoiser(FOLDER / f"{name}.safetensors", format="score_sde", config=FOLDER / f"{name}.json")


def random_network(seed: int = 0, dtype: torch.dtype = torch.float32, **fields) -> DDPMpp:
    """A network with all kinds of modules, every weight random (norms and biases too), frozen."""
    values = {
        "image_size": 8,
        "channels": 2,
        "nf": 8,
        "ch_mult": (1, 2),
        "n_blocks": 1,
        "attn_resolutions": (8,),
    }
    network = Denoiser.from_config({**values, "dropout": 0.2, **fields}, seed=seed).network.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return network.requires_grad_(False).eval()


@contextmanager
def plain_autograd() -> Iterator[None]:
    """Inside, networks use torch's own operations and torch's own autograd only."""
    with (
        mock.patch.object(fused, "usable", return_value=False),
        mock.patch.object(frozen, "saves_nothing_for", return_value=False),
        mock.patch.object(frozen, "can_pack", return_value=False),
        mock.patch.object(frozen, "attention", torch.nn.functional.scaled_dot_product_attention),
        mock.patch.object(frozen, "mean_down", lambda x: torch.nn.functional.avg_pool2d(x, 2)),
    ):
        yield


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def output_and_vjp(network, x: Tensor, labels: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """network(x, labels) and its vector-Jacobian product with respect to x."""
    leaf = x.detach().clone().requires_grad_(True)
    output = network(leaf, labels)
    return output.detach(), torch.autograd.grad(output, leaf, v)[0]
