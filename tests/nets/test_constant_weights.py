"""Networks of somebody else through ``from_module``: torch's own numbers, from less than half of the bytes."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import fastpure as fp
from fastpure import Denoiser
from fastpure.nets import denoiser as denoiser_file
from fastpure.nets import products
from fastpure.nets.constant_weights import ConstantWeights
from fastpure.reverse.memory import count_saved_bytes
from tests.golden import relative_error
from tests.nets.helpers import normal, output_and_vjp
from tests.nets.plain_unet import plain_unet

LABELS = torch.tensor([30.0, 700.0])
SHAPE = (2, 3, 16, 16)


@contextlib.contextmanager
def plain_autograd():
    """Inside, ``Denoiser`` calls networks as they are."""
    with mock.patch.object(denoiser_file, "ConstantWeights", contextlib.nullcontext):
        yield


def in_context(function):
    def call(x: Tensor, *more: Tensor) -> Tensor:
        with ConstantWeights():
            return function(x, *more)

    return call


def output_and_gradient(function, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return output_and_vjp(lambda x, _: function(x), x, LABELS, v)


def kept(function, *constants: Tensor) -> int:
    x = normal(*SHAPE, dtype=torch.float32).requires_grad_(True)
    with count_saved_bytes(*constants) as counter:
        function(x)
    return counter.total


@pytest.mark.parametrize("guided", [False, True])
def test_a_step_keeps_less_than_half(guided):
    network = plain_unet(guided)
    denoiser = Denoiser.from_module(network, image_shape=SHAPE[1:])
    steps = denoiser.conditioning([100.0], [100], [0.9], [0.4])

    def step(x: Tensor) -> Tensor:
        return denoiser.noise_pred(x, steps, 0)

    ours = kept(step, *network.parameters())
    with plain_autograd():
        plain = kept(step, *network.parameters())
    assert ours < 0.5 * plain


@pytest.fixture
def torchs_products(monkeypatch):
    """Products in bfloat16 are torch's own, also where they are slow."""
    monkeypatch.setattr(products, "computes", lambda dtype: True)


@pytest.mark.usefixtures("torchs_products")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)]
)
@pytest.mark.parametrize("guided", [False, True])
def test_values_keep_their_bits_and_gradients_agree(guided, dtype, rounding, layout):
    network = plain_unet(guided, dtype).to(memory_format=layout)
    x, v = (normal(*SHAPE, seed=seed).to(dtype).contiguous(memory_format=layout) for seed in (0, 1))
    ours = output_and_vjp(in_context(network), x, LABELS, v)
    plain = output_and_vjp(network, x, LABELS, v)
    assert torch.equal(ours[0], plain[0])
    # The other one writes SiLU as x * sigmoid(x), whose derivative torch rounds four times.
    assert torch.equal(ours[1], plain[1]) or not guided
    assert relative_error(ours[1].double(), plain[1].double()) < rounding


@pytest.fixture
def attention_in_parts():
    """Torch's fused attention has no second derivative on the CPU."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def second_derivative(function, x: Tensor, v: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(function(leaf), leaf, v, create_graph=True)
    return torch.autograd.grad(g.square().sum(), leaf)[0]


@pytest.mark.usefixtures("attention_in_parts")
@pytest.mark.parametrize("guided", [False, True])
def test_second_derivatives(guided):
    network = plain_unet(guided, torch.float64, width=8)
    x, v = normal(*SHAPE), normal(*SHAPE, seed=1)
    ours = second_derivative(lambda x: in_context(network)(x, LABELS), x, v)
    assert relative_error(ours, second_derivative(lambda x: network(x, LABELS), x, v)) < 1e-12


@pytest.mark.usefixtures("attention_in_parts")
@pytest.mark.parametrize("make", [fp.methods.likelihood_max, fp.methods.adp], ids=lambda make: make.__name__)
def test_methods_that_differentiate_the_denoiser_twice(make):
    denoiser = Denoiser.from_module(plain_unet(dtype=torch.float64, width=8), image_shape=SHAPE[1:])
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(
            fp.Purifier(denoiser, make(n_iter=2), precision="fp64")(leaf).square().sum(), leaf
        )[0]

    ours = gradient()
    with plain_autograd():
        plain = gradient()
    assert plain.abs().max() > 1e-3
    assert relative_error(ours, plain) < 1e-9  # Adam divides by the square root of its second moment


WEIGHT, BIAS = normal(4, seed=1), normal(4, seed=2)


def normed(x: Tensor) -> Tensor:
    return F.group_norm(x, 2, WEIGHT, BIAS)


OPERATIONS = {
    "silu": lambda x: F.silu(normed(x)),
    "swish": lambda x: (z := normed(x)) * z.sigmoid(),
    "swish, turned round": lambda x: torch.mul(F.sigmoid(z := normed(x)), z),
    "sigmoid": lambda x: torch.sigmoid(normed(x)),
    "scaled and shifted": lambda x: F.silu(
        1.5 + normed(x) * normal(2, 4, 1, 1, seed=4) * 2 + BIAS.view(-1, 1, 1)
    ),
    "converted": lambda x: F.silu(normed(x).float().to(torch.float64).type(torch.float32)).double(),
    "of the norm and beside it": lambda x: F.silu(z := normed(x)) + z,
    "convolution in one dimension": lambda x: torch.conv1d(x.flatten(2), normal(3, 4, 3), None, 1, 1),
    "convolution in three": lambda x: F.conv3d(x[:, None], normal(2, 1, 2, 2, 2), normal(2)),
    "strides, groups, dilation": lambda x: F.conv2d(x, normal(6, 2, 3, 3), None, (2, 1), (0, 2), (1, 2), 2),
    "transposed": lambda x: F.conv_transpose2d(x, normal(4, 1, 3, 3), normal(2), 2, 1, 1, 2),
    "mean": lambda x: F.avg_pool2d(x, 2) + nn.AvgPool2d((2, 2))(x),
    "another mean": lambda x: F.avg_pool2d(x, 2, 1, padding=1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    function, x = OPERATIONS[name], normal(2, 4, 4, 4)
    v = normal(*function(x).shape, seed=3)
    ours, plain = (output_and_gradient(f, x, v) for f in (in_context(function), function))
    assert torch.equal(ours[0], plain[0])
    assert relative_error(ours[1], plain[1]) < 1e-15
    if name != "converted":
        assert torch.autograd.gradgradcheck(in_context(function), x.requires_grad_(True))


def in_place_on_the_norm(x: Tensor) -> Tensor:
    z = normed(x)
    return F.silu(z.mul_(2))


def in_place_silu(x: Tensor) -> Tensor:
    z = normed(x)
    F.silu(z, inplace=True)
    return z


@pytest.mark.parametrize("function", [in_place_on_the_norm, in_place_silu])
def test_changes_in_place_are_noticed(function):
    x, v = normal(2, 4, 4, 4), normal(2, 4, 4, 4, seed=3)
    ours, plain = (output_and_gradient(f, x, v) for f in (in_context(function), function))
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])


def test_a_changed_input_is_refused_as_ever():
    def function(x: Tensor) -> Tensor:
        h = x * 1.0
        z = normed(h)
        h.add_(1)
        return F.silu(z)

    x = normal(2, 4, 4, 4).requires_grad_(True)
    for call in (function, in_context(function)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(call(x).sum(), x)


def test_weights_that_are_trained_get_their_gradients():
    network, x = (
        plain_unet(True).requires_grad_(True),
        normal(*SHAPE, dtype=torch.float32).requires_grad_(True),
    )
    found = []
    for call in (network, in_context(network)):
        weights = list(network.parameters())
        found.append(torch.autograd.grad(call(x, LABELS).square().sum(), [x, *weights]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_hooks_of_the_users_modules_fire():
    network = plain_unet()
    seen = []
    network.first.register_forward_hook(lambda *_: seen.append("forward"))
    network.last[1].register_full_backward_hook(lambda *_: seen.append("backward"))
    x, v = normal(*SHAPE, dtype=torch.float32), normal(*SHAPE, seed=1, dtype=torch.float32)
    hooked = output_and_vjp(in_context(network), x, LABELS, v)
    assert seen == ["forward", "backward"]
    assert torch.equal(hooked[1], output_and_vjp(in_context(plain_unet()), x, LABELS, v)[1])


def test_autocast_decides_itself():
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain_unet()

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.network(x, labels)

    x, v = normal(*SHAPE, dtype=torch.float32), normal(*SHAPE, seed=1).bfloat16()
    network = Autocast()
    ours, plain = (output_and_vjp(f, x, LABELS, v) for f in (in_context(network), network))
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])


@pytest.mark.usefixtures("torchs_products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backward_pass_under_autocast(dtype):
    network = plain_unet(True, dtype)
    x, v = normal(*SHAPE).to(dtype).requires_grad_(True), normal(*SHAPE, seed=1).to(dtype)
    outputs = in_context(network)(x, LABELS), network(x, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = (torch.autograd.grad(output, x, v)[0] for output in outputs)
    assert torch.equal(ours, plain)


def test_checkpoints_meet_the_same_tensors():
    network = plain_unet()
    x, v = normal(*SHAPE, dtype=torch.float32), normal(*SHAPE, seed=1, dtype=torch.float32)

    def checkpointed(x: Tensor, labels: Tensor) -> Tensor:
        return checkpoint(network, x, labels, use_reentrant=False)

    ours = output_and_vjp(in_context(checkpointed), x, LABELS, v)
    assert torch.equal(ours[1], output_and_vjp(network, x, LABELS, v)[1])


def test_transformations_of_torch_func_and_forward_mode():
    network = plain_unet(True, torch.float64, width=8)
    x, v = normal(*SHAPE), normal(*SHAPE, seed=1)
    _, plain = output_and_vjp(network, x, LABELS, v)
    pull = torch.func.vjp(lambda x: in_context(network)(x, LABELS), x)[1]
    assert relative_error(pull(v)[0], plain) < 1e-12
    push = torch.func.jvp(lambda x: in_context(network)(x, LABELS), (x,), (v,))[1]
    assert abs((push * v).sum() - (plain * v).sum()) < 1e-9 * plain.abs().sum()


def test_inference_mode():
    network, x = plain_unet(), normal(*SHAPE, dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(in_context(network)(x, LABELS), network(x, LABELS))


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_parts_stay_compiled(whole):
    network = plain_unet()
    x, v = normal(*SHAPE, dtype=torch.float32), normal(*SHAPE, seed=1, dtype=torch.float32)
    plain = output_and_vjp(network, x, LABELS, v)
    if whole:
        network = torch.compile(network, backend="aot_eager")
    else:
        network.last = torch.compile(network.last, backend="aot_eager", fullgraph=True)
    ours = output_and_vjp(in_context(network), x, LABELS, v)
    with mock.patch.object(torch._dynamo.config, "error_on_recompile", True):
        again = output_and_vjp(in_context(network), x, LABELS, v)
    for one, other, third in zip(ours, plain, again, strict=True):
        assert relative_error(one, other) < 1e-4
        assert torch.equal(one, third)


def test_scripts_are_left_alone():
    network, x = plain_unet(width=8), normal(*SHAPE, dtype=torch.float32)
    script = torch.jit.trace(network, (x, LABELS))
    v = normal(*SHAPE, seed=1, dtype=torch.float32)
    ours = output_and_vjp(in_context(script), x, LABELS, v)
    assert relative_error(ours[1], output_and_vjp(network, x, LABELS, v)[1]) < 1e-5
