"""Residual blocks on the fused kernels' references, in float64, against plain autograd of the plain network."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from fastpure.kernels import use_backend
from fastpure.nets import fused
from fastpure.reverse.memory import watch_saved
from tests.kernels.closeness import largest_error
from tests.nets.helpers import normal, output_and_vjp, plain_autograd, random_network

LABELS = torch.tensor([30.0, 30.0])
SHAPES = {
    "biggan": {"attn_resolutions": (4,), "n_blocks": 2},
    "ddpm": {"block": "ddpm"},
    "two levels of doubling": {"ch_mult": (1, 2, 1), "attn_resolutions": (2,)},
}


@pytest.fixture(params=SHAPES)
def network(request):
    return random_network(dtype=torch.float64, **SHAPES[request.param])


def on_fused_kernels():
    """Everything goes through the operations, which the CPU runs by their references."""
    return mock.patch.object(fused, "serves", return_value=True)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return largest_error(found, exact) / float(exact.abs().max())


def test_output_and_gradient_are_those_of_the_plain_network(network):
    x, v = normal(2, 2, 8, 8), normal(2, 2, 8, 8, seed=1)
    with plain_autograd():
        exact = output_and_vjp(network, x, LABELS, v)
    with on_fused_kernels(), use_backend("reference"):
        found = output_and_vjp(network, x, LABELS, v)
        with torch.no_grad():
            without_gradient = network(x, LABELS)
    assert relative(found[0], exact[0]) < 1e-12
    assert relative(found[1], exact[1]) < 1e-12
    assert torch.equal(without_gradient, found[0])


def test_one_row_for_all_images_and_one_per_image_agree(network):
    x = normal(2, 2, 8, 8)
    with on_fused_kernels(), torch.no_grad():
        embeddings = network.embedding(LABELS)
        assert relative(network.body(x, embeddings[:1]), network.body(x, embeddings)) < 1e-14


def test_second_derivatives_are_those_of_the_plain_network(network):
    x, v, w = (normal(2, 2, 8, 8, seed=seed) for seed in range(3))

    def hessian_product() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf, LABELS), leaf, v, create_graph=True)
        return torch.autograd.grad(gradient, leaf, w)[0]

    with plain_autograd():
        exact = hessian_product()
    with on_fused_kernels(), use_backend("reference"):
        found = hessian_product()
    assert relative(found, exact) < 1e-11


def test_the_kernels_run_and_keep_less_than_plain_autograd(network):
    x = normal(2, 2, 8, 8).requires_grad_()
    sizes = {}

    def kept(name: str) -> None:
        seen = {}
        with watch_saved(lambda t: seen.setdefault(t.untyped_storage().data_ptr(), t)):
            output = network(x, LABELS)
        weights = {w.untyped_storage().data_ptr() for w in network.parameters()}
        sizes[name] = sum(t.untyped_storage().nbytes() for p, t in seen.items() if p not in weights)
        del output

    with plain_autograd():
        kept("plain")
    with on_fused_kernels(), mock.patch.object(fused, "group_norm_silu", wraps=fused.group_norm_silu) as norm:
        kept("fused")
    assert norm.call_count > 4
    assert sizes["fused"] < 0.6 * sizes["plain"]


def test_weights_in_training_and_dropout_take_the_plain_way(network):
    x = normal(2, 2, 8, 8)
    with on_fused_kernels(), mock.patch.object(fused, "enter", side_effect=AssertionError("fused")):
        network.requires_grad_(True)
        network(x, LABELS).sum().backward()
        assert all(p.grad is not None for p in network.parameters())
        network.requires_grad_(False).train()
        network(x, LABELS)


def test_nothing_is_fused_in_float64_on_the_cpu(network):
    with mock.patch.object(fused, "enter", side_effect=AssertionError("fused")):
        network(normal(2, 2, 8, 8), LABELS)
