"""Packed convolution weights: the same results, and never those of a weight that is no longer there."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F

from fastpure import Denoiser
from fastpure.nets import frozen, packed
from fastpure.nets.layers import Attention
from fastpure.nets.narrow import Programs
from fastpure.nets.packed import PackedMap, PackedWeight, can_pack
from fastpure.nets.products import computes
from tests.golden import relative_error
from tests.nets.helpers import normal, output_and_vjp, plain_autograd, random_network

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return normal(*shape, seed=seed, dtype=torch.float32)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("inputs", "outputs", "size"), [(3, 16, 3), (32, 32, 3), (32, 64, 1), (48, 5, 3)])
def test_convolution_and_its_pullback(inputs, outputs, size, layout):
    weight, bias = random(outputs, inputs, size, size, seed=1), random(outputs, seed=2)
    cache = PackedWeight()
    for batch in (2, 1, 9):  # the first batch size decides the layout; the others must be right all the same
        x = random(batch, inputs, 8, 6).contiguous(memory_format=layout)
        v = random(batch, outputs, 8, 6, seed=3).contiguous(memory_format=layout)
        assert can_pack(x, weight, 1, size // 2)
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=size // 2)
        pulled = F.conv_transpose2d(v.double(), weight.double(), padding=size // 2)
        assert relative_error(cache.convolve(x, weight, bias), exact) < 1e-6
        assert relative_error(cache.pull_back(v, weight), pulled) < 1e-6


@pytest.mark.skipif(not computes(torch.bfloat16), reason="this processor does not compute in bfloat16")
@pytest.mark.parametrize(("inputs", "outputs", "size"), [(16, 32, 3), (32, 48, 1)])
def test_bfloat16_is_packed_too(inputs, outputs, size):
    weight, bias = random(outputs, inputs, size, size, seed=1), random(outputs, seed=2)
    x, v = random(2, inputs, 8, 6), random(2, outputs, 8, 6, seed=3)
    weight, bias, x, v = (t.bfloat16() for t in (weight, bias, x, v))
    assert can_pack(x, weight, 1, size // 2)
    assert not can_pack(x.float(), weight, 1, size // 2)
    cache = PackedWeight()
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=size // 2)
    pulled = F.conv_transpose2d(v.double(), weight.double(), padding=size // 2)
    assert relative_error(cache.convolve(x, weight, bias).double(), exact) < 1e-2
    assert relative_error(cache.pull_back(v, weight).double(), pulled) < 1e-2


def _replace(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(-1)


def _replace_unseen(weight: torch.Tensor) -> None:
    weight.data.mul_(-1)


@pytest.mark.parametrize("change", [_replace, _replace_unseen])
def test_changed_weights_are_packed_again(change):
    """In-place changes, even those that autograd's version counter does not see."""
    weight, x = random(16, 16, 3, 3, seed=1), random(2, 16, 8, 8)
    cache = PackedWeight()
    before, pulled = cache.convolve(x, weight, None), cache.pull_back(x, weight)
    change(weight)
    torch.testing.assert_close(cache.convolve(x, weight, None), -before)
    torch.testing.assert_close(cache.pull_back(x, weight), -pulled)
    other = random(16, 16, 3, 3, seed=2)
    torch.testing.assert_close(cache.convolve(x, other, None), F.conv2d(x, other, padding=1))


def test_network_with_packed_weights():
    network = random_network()
    x, v, labels = random(2, 2, 8, 8), random(2, 2, 8, 8, seed=1), torch.tensor([99.9])
    ours = output_and_vjp(network, x, labels, v)
    assert network.all_modules[2].packed._forms is not None
    with plain_autograd():
        plain = output_and_vjp(network, x, labels, v)
    assert relative_error(ours[0], plain[0]) < 1e-5
    assert relative_error(ours[1], plain[1]) < 2e-5


def test_second_derivative_with_packed_weights():
    weight = random(4, 4, 3, 3, seed=1)
    cache = PackedWeight()
    x = random(2, 4, 5, 5).requires_grad_(True)
    y = frozen.conv2d(x, weight, None, 1, 1, cache)
    (gradient,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (ours,) = torch.autograd.grad(gradient.square().sum(), x)
    y = F.conv2d(x, weight, None, padding=1)
    (gradient,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(gradient.square().sum(), x)
    assert relative_error(ours, plain) < 1e-5


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_only_where_it_pays_and_is_right():
    x, weight = random(2, 256, 4, 4), random(256, 256, 3, 3, seed=1)
    assert can_pack(x, weight, 1, 1)
    assert not can_pack(x, weight, 2, 0)
    assert not can_pack(x, weight, 1, 0)
    assert not can_pack(x.double(), weight.double(), 1, 1)
    assert not can_pack(x, weight.clone().requires_grad_(True), 1, 1)
    assert not can_pack(x[:0], weight, 1, 1)
    many = x[:1, :, :1, :1].expand(1, 256, 100, 100)
    assert can_pack(many, weight, 1, 1)
    assert can_pack(x, weight[:, :, :1, :1], 1, 0)
    assert not can_pack(many, weight[:, :, :1, :1], 1, 0)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not can_pack(x, weight, 1, 1)


def test_trainable_weights_and_biases_use_plain_autograd():
    weight, bias, x = random(8, 8, 3, 3, seed=1), random(8, seed=2).requires_grad_(True), random(2, 8, 5, 5)
    frozen.conv2d(x, weight, bias, 1, 1, PackedWeight()).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((8,), 50.0))


def test_copies_and_pickles():
    """Packed tensors can be neither copied nor pickled; networks that hold some must be."""
    network = random_network()
    x, labels = random(2, 2, 8, 8), torch.tensor([99.9])
    output = network(x, labels)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other.all_modules[2].packed._forms is None
        assert torch.equal(other(x, labels), output)


def test_frozen_copies_share_packed_weights():
    """Several purifiers of one denoiser must not pack it several times."""
    denoiser = Denoiser.from_config("ddpmpp-digits")
    first, second = denoiser.frozen(), denoiser.cast(torch.float32)

    def caches(copied: Denoiser) -> list[object]:
        modules = copied.network.modules()
        kinds = (PackedWeight, PackedMap, Programs)
        return [part for module in modules for part in vars(module).values() if isinstance(part, kinds)]

    assert len(caches(first)) > 20
    assert all(one is other for one, other in zip(caches(first), caches(second), strict=True))
    wide = caches(denoiser.cast(torch.float64))
    assert all(one is not other for one, other in zip(caches(first), wide, strict=True))


def test_a_gradient_through_a_map_that_changed_is_refused():
    network = random_network(dtype=torch.float32, nf=12, attn_resolutions=(8,))  # too narrow for programs
    x = random(2, 2, 8, 8).requires_grad_()
    y = network(x, torch.tensor([99.9]))
    attention = next(module for module in network.modules() if isinstance(module, Attention))
    with torch.no_grad():
        attention.NIN_3.W.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skips", [0, 24])
def test_a_packed_map_is_the_product(skips, dtype):
    if dtype == torch.bfloat16 and not computes(torch.bfloat16):
        pytest.skip("this processor does not compute in bfloat16")
    nhwc = torch.channels_last
    x = random(2, 16, 4, 6).to(dtype).contiguous(memory_format=nhwc)
    skip = random(2, skips, 4, 6, seed=1).to(dtype).contiguous(memory_format=nhwc) if skips else None
    matrix, bias = random(40, 16 + skips, seed=2).to(dtype), random(40, seed=3).to(dtype)
    v = random(2, 40, 4, 6, seed=4).to(dtype).contiguous(memory_format=nhwc)
    both = x if skip is None else torch.cat([x, skip], 1)
    exact = torch.einsum("oc,bchw->bohw", matrix.double(), both.double()) + bias.double()[:, None, None]
    pulled = torch.einsum("oc,bohw->bchw", matrix.double(), v.double())
    cache = PackedMap()
    assert packed.can_map(x, matrix)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    assert relative_error(cache.apply(x, skip, matrix, bias).double(), exact) < tolerance
    assert relative_error(cache.pull_back(v, matrix).double(), pulled) < tolerance


def test_threads_may_share_packed_weights():
    weight, x = random(32, 32, 3, 3, seed=1), random(2, 32, 8, 8)
    exact = F.conv2d(x, weight, padding=1)
    for _ in range(20):
        cache, errors = PackedWeight(), []
        start = threading.Barrier(3)

        def run(cache=cache, errors=errors, start=start) -> None:
            start.wait()
            try:
                assert relative_error(cache.convolve(x, weight, None), exact) < 1e-5
            except Exception as error:
                errors.append(error)

        workers = [threading.Thread(target=run) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not errors


def test_inference_weights_are_left_alone():
    with torch.inference_mode():
        weight = random(16, 16, 3, 3, seed=1)
    assert not can_pack(random(2, 16, 8, 8), weight, 1, 1)
