"""Weights as constants: the same numbers, first and second derivatives, with less kept and computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.roofline import trace
from fastpure.classifiers.base import call_frozen
from fastpure.nets.constant_weights import ConstantWeights
from fastpure.reverse.memory import count_saved_bytes


class Mixed(nn.Module):
    """Strides, groups, dilation, biases, string padding, a transposed convolution, norms with and without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False),
            nn.BatchNorm2d(8, affine=False),
            nn.Tanh(),
            nn.Conv2d(8, 8, (1, 3), padding="same"),
            nn.ConvTranspose2d(8, 4, 2, stride=2),
            nn.BatchNorm2d(4, track_running_stats=False, affine=True).eval(),
            nn.Softplus(),
        )
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(dim=(2, 3)))


@pytest.fixture(params=["contiguous", "channels_last"])
def case(request):
    torch.manual_seed(0)
    network = Mixed().double()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                part.weight.data.normal_()
                part.bias.data.normal_()
    x, v = torch.rand(2, 2, 3, 9, 9, dtype=torch.float64)
    if request.param == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    return network.eval().requires_grad_(False), x, v


def derivatives(call, x, v):
    leaf = x.clone().requires_grad_(True)
    logits = call(leaf)
    loss = F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64), reduction="sum")
    (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (h,) = torch.autograd.grad(g, leaf, v)
    return logits.detach(), g.detach(), h


def test_values_and_derivatives_are_torchs(case):
    network, x, v = case
    expected, got = derivatives(network, x, v), derivatives(lambda x: call_frozen(network, x), x, v)
    for a, b in zip(expected, got, strict=True):
        assert a.abs().max() > 1e-6
        torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-13)


def test_with_and_without_a_gradient_the_logits_have_the_same_bits(case):
    network, x, _ = case
    with torch.no_grad():
        silent = call_frozen(network, x)
    assert torch.equal(silent, call_frozen(network, x.clone().requires_grad_(True)))


def test_a_trained_layer_is_torchs_own():
    layer, x = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8, requires_grad=True)
    with ConstantWeights():
        layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_batch_normalisation_in_training_mode_is_torchs_own():
    norm, x = nn.BatchNorm2d(3), torch.rand(4, 3, 8, 8)
    with ConstantWeights():
        norm(x)
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_a_changed_normalisation_is_noticed(name):
    norm, x = nn.BatchNorm2d(3).eval().requires_grad_(False), torch.rand(1, 3, 4, 4)
    call_frozen(norm, x)
    getattr(norm, name).fill_(0.3)
    torch.testing.assert_close(call_frozen(norm, x), norm(x))
    setattr(norm, name, type(getattr(norm, name))(torch.full((3,), 2.0)).requires_grad_(False))
    torch.testing.assert_close(call_frozen(norm, x), norm(x))


def chain() -> nn.Module:
    layers = [
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        for _ in range(4)
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().requires_grad_(False)


def test_the_hessians_product_costs_four_passes_not_five():
    network, x = chain(), torch.rand(1, 8, 16, 16)
    v = torch.rand_like(x)
    forward = trace(lambda: network(x)).flops
    assert trace(lambda: derivatives(lambda x: call_frozen(network, x), x, v)).flops == 4 * forward
    # Torch also computes a second derivative of the weights; once it does not, the class is of no use any more.
    assert trace(lambda: derivatives(network, x, v)).flops == 5 * forward


def test_less_is_kept():
    network, x = chain(), torch.rand(1, 8, 16, 16, requires_grad=True)
    kept = []
    for call in (network, lambda x: call_frozen(network, x)):
        with count_saved_bytes(*network.parameters(), *network.buffers()) as counter:
            call(x)
        kept.append(counter.total)
    assert kept[1] < 0.6 * kept[0]


def test_autocast_and_scripts_are_left_alone():
    network, x = chain(), torch.rand(1, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call_frozen(network, x), network(x))
    script = torch.jit.trace(network, x)
    torch.testing.assert_close(call_frozen(script, x), network(x))
