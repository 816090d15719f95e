"""Frozen-weight autograd: the same gradients as torch's own, first and second order, from far fewer bytes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastpure.kernels import use_backend
from fastpure.nets import frozen
from fastpure.reverse.memory import count_saved_bytes
from tests.golden import relative_error
from tests.kernels.helpers import needs_ext
from tests.nets.helpers import normal, output_and_vjp, plain_autograd, random_network


def _norm_weights(channels: int, dtype: torch.dtype = torch.float64):
    return normal(channels, seed=1).to(dtype), normal(channels, seed=2).to(dtype), 2, 1e-6


FUNCTIONS = {
    "conv": (lambda x: frozen.conv2d(x, normal(3, 4, 3, 3, seed=1), normal(3, seed=2), 1, 1), (2, 4, 3, 2)),
    "conv, no bias": (lambda x: frozen.conv2d(x, normal(3, 4, 1, 1, seed=1), None), (2, 4, 2, 2)),
    "conv, stride 2": (lambda x: frozen.conv2d(x, normal(3, 4, 3, 3, seed=1), normal(3), 2, 0), (1, 4, 5, 3)),
    "norm": (lambda x: frozen.norm_silu(x, *_norm_weights(4, x.dtype)), (2, 4, 2, 2)),
    "concat": (lambda x: frozen.concat_norm_silu(x[:, :3], x[:, 3:], *_norm_weights(4))[1], (2, 4, 2, 2)),
    "concat, both": (
        lambda x: torch.cat(frozen.concat_norm_silu(x[:, :3], x[:, 3:], *_norm_weights(4, x.dtype)), 1),
        (2, 4, 2, 1),
    ),
    "attention": (lambda x: frozen.attention(x[0], x[1], x[2]), (3, 2, 3, 2)),
    "mean": (frozen.mean_down, (1, 2, 4, 6)),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_equals_plain_autograd(name, layout):
    function, shape = FUNCTIONS[name]
    x = normal(*shape).contiguous(memory_format=layout)
    v = normal(*function(x).shape, seed=5)
    ours = output_and_vjp(lambda leaf, _: function(leaf), x, None, v)
    with plain_autograd():
        plain = output_and_vjp(lambda leaf, _: function(leaf), x, None, v)
    assert relative_error(ours[0], plain[0]) < 1e-13
    assert relative_error(ours[1], plain[1]) < 1e-12


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives(name):
    function, shape = FUNCTIONS[name]
    x = normal(*shape).requires_grad_(True)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


NORMS = {name: FUNCTIONS[name] for name in ("norm", "concat, both")} | {
    "norm, no SiLU": (lambda x: frozen.norm(x, *_norm_weights(4, x.dtype)), (2, 4, 2, 2))
}
"""What the host extension computes where it can; the FUNCTIONS above are float64, where it cannot."""


@needs_ext
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_norms_in_network_precision(name, dtype, tolerance, monkeypatch):
    """Value, gradient and second derivative; the first two really come from the extension."""
    function, shape = NORMS[name]
    x = normal(*shape).to(dtype).contiguous(memory_format=torch.channels_last)
    v = normal(*function(x).shape, seed=5).to(dtype)
    wanted = output_and_vjp(lambda leaf, _: function(leaf), x.double(), None, v.double())
    calls = []
    for kernel in ("group_norm_silu", "group_norm_silu_vjp"):
        original = getattr(frozen, kernel)
        monkeypatch.setattr(
            frozen, kernel, lambda *a, o=original, k=kernel, **b: (calls.append(k), o(*a, **b))[1]
        )
    found = output_and_vjp(lambda leaf, _: function(leaf), x, None, v)
    assert calls == ["group_norm_silu", "group_norm_silu_vjp"]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert relative_error(one.double(), other) < tolerance
    with torch.no_grad():
        assert torch.equal(function(x), found[0])

    def curvature(x: torch.Tensor) -> torch.Tensor:
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(function(leaf), leaf, v.to(x.dtype), create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaf)[0]

    if dtype == torch.float32:
        assert relative_error(curvature(x).double(), curvature(x.double())) < 1e-4


@needs_ext
def test_the_network_runs_on_the_extension_and_on_torch_alike():
    network = random_network(nf=16, n_blocks=2)
    x, v = (normal(2, 2, 8, 8, seed=seed, dtype=torch.float32) for seed in (0, 1))
    labels = torch.tensor([99.9, 20.0])
    ours = output_and_vjp(network, x, labels, v)
    with use_backend("reference"):
        torchs = output_and_vjp(network, x, labels, v)
    for one, other in zip(ours, torchs, strict=True):
        assert not torch.equal(one, other)  # that would be the same kernel twice
        assert relative_error(one, other) < 2e-5


def test_attention_is_softmax_attention():
    q, k, v = (normal(2, 5, 4, seed=seed) for seed in range(3))
    expected = torch.softmax(q @ k.mT / 2, -1) @ v
    torch.testing.assert_close(frozen.attention(q, k, v), expected)
    torch.testing.assert_close(frozen.attention(q.requires_grad_(True), k, v), expected)


@pytest.mark.parametrize("block", ["biggan", "ddpm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_network_gradient_equals_plain_autograd(block, dtype, tolerance):
    network = random_network(dtype=dtype, block=block)
    x, v, labels = (
        normal(2, 2, 8, 8).to(dtype),
        normal(2, 2, 8, 8, seed=1).to(dtype),
        torch.tensor([99.9, 20.0]),
    )
    ours = output_and_vjp(network, x, labels, v)
    with plain_autograd():
        plain = output_and_vjp(network, x, labels, v)
    assert relative_error(ours[0], plain[0]) < tolerance
    assert relative_error(ours[1], plain[1]) < tolerance


@pytest.mark.parametrize("block", ["biggan", "ddpm"])
def test_network_second_derivative_equals_plain_autograd(block):
    """d/dx of |J^T v|^2: what methods need that differentiate through a gradient."""
    network = random_network(dtype=torch.float64, block=block)
    x, v, labels = normal(2, 2, 8, 8), normal(2, 2, 8, 8, seed=1), torch.tensor([99.9])

    def curvature() -> torch.Tensor:
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(leaf, labels), leaf, v, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaf)[0]

    ours = curvature()
    with plain_autograd():
        plain = curvature()
    assert plain.abs().max() > 1e-3
    assert relative_error(ours, plain) < 1e-11


def test_training_gradients_reach_every_weight():
    network = random_network(dtype=torch.float64).requires_grad_(True)
    x, labels = normal(2, 2, 8, 8), torch.tensor([99.9, 20.0])
    (network(x, labels) * normal(2, 2, 8, 8, seed=1)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    # Attention ignores a constant added to every key, so that bias alone has no gradient.
    live = {
        name for name, gradient in gradients.items() if gradient is not None and gradient.abs().max() > 1e-9
    }
    assert {name for name in gradients if name not in live} == {
        name for name in gradients if name.endswith("NIN_1.b")
    }


def test_a_single_trainable_weight_gets_its_gradient():
    weight, bias = normal(3, 4, 3, 3), normal(3)
    x = normal(2, 4, 5, 5).requires_grad_(True)
    bias.requires_grad_(True)
    frozen.conv2d(x, weight, bias, 1, 1).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((3,), 50.0, dtype=torch.float64))


def test_asking_for_a_gradient_does_not_change_the_output():
    """Bit for bit, so that the defence an attack differentiates is the defence that is deployed."""
    network = random_network()
    x, labels = normal(2, 2, 8, 8, dtype=torch.float32), torch.tensor([99.9])
    with_graph = network(x.clone().requires_grad_(True), labels)
    assert with_graph.requires_grad
    assert torch.equal(with_graph.detach(), network(x, labels))


def test_no_graph_without_gradients():
    network = random_network()
    x, labels = normal(1, 2, 8, 8, dtype=torch.float32), torch.tensor([5.0])
    assert not network(x, labels).requires_grad
    with torch.no_grad():
        assert not network(x.requires_grad_(True), labels).requires_grad


def _kept(network, batch: int) -> int:
    x = normal(batch, 2, 16, 16, dtype=torch.float32).requires_grad_(True)
    with count_saved_bytes(*network.parameters()) as counter:
        network.body(x, network.embedding(torch.tensor([99.9])))
    return counter.total


def test_frozen_weights_keep_a_third():
    """Official proportions (biggan blocks, attention at half resolution), 3 blocks per level."""
    network = random_network(image_size=16, nf=32, ch_mult=(1, 2, 2), n_blocks=3)
    ours = _kept(network, 2)
    with plain_autograd():
        plain = _kept(network, 2)
    assert ours < 0.36 * plain
    assert _kept(network, 4) == pytest.approx(2 * ours, rel=0.02)


def test_convolution_keeps_its_weight_only():
    x = normal(2, 4, 16, 16).requires_grad_(True)
    weight = normal(4, 4, 3, 3)
    with count_saved_bytes(weight) as counter:
        frozen.conv2d(x, weight, normal(4), 1, 1)
    assert counter.total == 0


def test_normalised_concatenation_shares_what_the_encoder_keeps():
    x, skip = (normal(2, 4, 16, 16, seed=seed).requires_grad_(True) for seed in (0, 1))
    weight, bias, groups, eps = _norm_weights(8)
    with count_saved_bytes(weight, bias, skip) as counter:
        frozen.concat_norm_silu(x, skip, weight, bias, groups, eps)
    assert counter.total == x.numel() * 8


def test_small_images_do_not_confuse_channels_last():
    """One channel makes both layouts the same; the result must not depend on which is reported."""
    weight, bias = normal(3, 1, 3, 3, seed=1), normal(3, seed=2)
    x = normal(2, 1, 4, 4)
    v = normal(2, 3, 4, 4, seed=3)
    expected = F.conv_transpose2d(v, weight, padding=1)
    _, vjp = output_and_vjp(lambda leaf, _: frozen.conv2d(leaf, weight, bias, 1, 1), x, None, v)
    torch.testing.assert_close(vjp, expected)
