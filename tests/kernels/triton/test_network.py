"""The digits network on the Triton kernels, against its plain path."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from fastpure.kernels import use_backend
from fastpure.nets import DDPMpp, fused
from fastpure.nets.ddpmpp import CONFIGS
from tests.kernels.closeness import distance
from tests.kernels.triton.cases import DEVICE

LIMIT = {torch.float32: 4e-6, torch.bfloat16: 5e-2}
"""Relative L2 error against float64; measured in float32 (interpreter): 7.4e-7 (output), 1.0e-6 (gradient)."""


def network(dtype: torch.dtype) -> DDPMpp:
    net = DDPMpp(CONFIGS["ddpmpp-digits"])
    net.initialise(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return net.to(DEVICE, dtype).requires_grad_(False).eval()


def output_and_gradient(net: DDPMpp, dtype: torch.dtype, *, plain: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, 1, 1, 8, 8, generator=generator).to(DEVICE, dtype).unbind()
    labels = torch.full((1,), 80.0, device=DEVICE)
    leaf = x.requires_grad_()
    with use_backend("reference" if plain else "triton"):
        output = net(leaf, labels)
        return output.detach(), torch.autograd.grad(output, leaf, v)[0]


@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])])
def test_the_network_runs_on_the_kernels_and_agrees_with_the_plain_path(dtype):
    with mock.patch.object(fused, "group_norm_silu", wraps=fused.group_norm_silu) as forward:
        found = output_and_gradient(network(dtype), dtype, plain=False)
    assert forward.call_count > 10
    exact = output_and_gradient(network(torch.float64), torch.float64, plain=True)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        assert distance(one, other).rel_l2 < LIMIT[dtype]


def test_the_same_bits_with_and_without_a_gradient():
    net = network(torch.float32)
    output, _ = output_and_gradient(net, torch.float32, plain=False)
    with torch.no_grad(), use_backend("triton"):
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(2, 1, 1, 8, 8, generator=generator)[0].to(DEVICE)
        assert torch.equal(net(x, torch.full((1,), 80.0, device=DEVICE)), output)
