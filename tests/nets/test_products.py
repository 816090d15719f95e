"""Products in bfloat16 and float16 on processors without: never torch's slow loops, rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fastpure import Denoiser
from fastpure.classifiers.base import call_frozen
from fastpure.nets import products
from fastpure.nets.products import autocast_products, product, widens
from fastpure.train import ClassifierLoss, DenoiserLoss, fit
from tests.nets.architectures import CONFIGS, denoiser
from tests.nets.helpers import normal
from tests.train.helpers import SmallClassifier, SmallDenoiser, few_digits, fresh, quick

HALVES = (torch.bfloat16, torch.float16)
ATEN = torch.ops.aten
SLOW = {
    *(ATEN.convolution, ATEN.convolution_backward, ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.addmm_),
    *(
        ATEN._scaled_dot_product_flash_attention_for_cpu,
        ATEN._scaled_dot_product_fused_attention_overrideable,
    ),
}


class Seen(TorchDispatchMode):
    """Notes which products were asked of torch, and in what."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in SLOW:
            first = next(one for one in args if isinstance(one, torch.Tensor))
            self.products.append((func.overloadpacket.__name__, first.dtype))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def none_here(monkeypatch):
    """As on a processor without such products, whatever this one is."""
    monkeypatch.setattr(products, "computes", lambda dtype: dtype not in HALVES)


class Foreign(nn.Module):
    """A network of somebody else, with every product that networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding="same")
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.down = nn.Conv2d(16, 16, 2, stride=2, groups=4, bias=False)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.map = nn.Linear(16, 16)
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = self.down(self.up(self.first(x)))
        tokens = image.flatten(2).mT
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        tokens = tokens + F.scaled_dot_product_attention(tokens, tokens, tokens)
        matrix = torch.softmax(tokens @ tokens.mT, -1)
        tokens = torch.bmm(matrix, self.map(tokens)) + torch.einsum("bij,bjc->bic", matrix, tokens)
        return self.last(tokens.mT.unflatten(2, image.shape[2:]))


def foreign(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return Foreign().to(dtype).requires_grad_(False).eval()


def derivatives(network, x: torch.Tensor) -> list[torch.Tensor]:
    """Result, gradient and a second derivative."""
    leaf = x.detach().clone().requires_grad_()
    y = network(leaf)
    (g,) = torch.autograd.grad(y.float().square().sum(), leaf, create_graph=True)
    (h,) = torch.autograd.grad(g.float().square().sum(), leaf)
    with torch.no_grad():
        return [network(x), y.detach(), g.detach(), h]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("name", CONFIGS)
def test_no_network_of_ours_asks_for_slow_products(none_here, name):
    made, seen = denoiser(name).cast(torch.bfloat16), Seen()
    level = torch.tensor([0.3 if made.time_input == "sigma" else 300.0], dtype=torch.bfloat16)
    with seen:
        found = derivatives(lambda x: made(x, level), normal(2, 3, 8, 8).bfloat16())
    assert seen.products
    assert {kind for _, kind in seen.products} == {torch.float32}
    assert all(bool(one.isfinite().all()) for one in found)


@pytest.mark.parametrize("dtype", HALVES)
def test_no_network_of_others_asks_for_slow_products(none_here, dtype):
    network, x, seen = foreign(dtype), normal(2, 3, 8, 8).to(dtype), Seen()
    with seen:
        found = derivatives(lambda x: call_frozen(network, x), x)
    assert len(seen.products) > 20
    # Second derivatives of operations that are not ours are torch's, as are their products.
    assert {kind for _, kind in seen.products} == {torch.float32}
    truth = derivatives(foreign(torch.float64), x.double())
    for one, exact in zip(found, truth, strict=True):
        assert one.dtype == dtype
        assert apart(one, exact) < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("grad", [True, False])
def test_nor_does_a_denoiser_of_others_with_or_without_a_gradient(none_here, grad):
    class Told(Foreign):
        def forward(self, x, labels):
            return super().forward(x)

    made = Denoiser.from_module(Told(), image_shape=(3, 8, 8)).cast(torch.bfloat16)
    steps = made.conditioning([300.0], [300], [0.9], [0.4])
    x, seen = normal(2, 3, 8, 8).bfloat16().requires_grad_(grad), Seen()
    with seen, torch.set_grad_enabled(grad):
        made.noise_pred(x, steps, 0)
    assert seen.products
    assert {kind for _, kind in seen.products} == {torch.float32}


@pytest.mark.parametrize("dtype", HALVES)
def test_rounded_once(none_here, dtype):
    a, b = normal(64, 64, seed=1).to(dtype), normal(64, 64, seed=2).to(dtype)
    out = a.new_empty(64, 64)
    pixels = a[:, :, None, None]
    found = {
        "mm": product(torch.mm, a, b),
        "keyword": product(torch.matmul, a, other=b),
        "einsum": product(torch.einsum, "ij,jk->ik", a, b),
        "out": product(torch.addmm, a.new_zeros(64), a, b, out=out),
        "convolution": product(F.conv2d, pixels, b.mT[:, :, None, None])[:, :, 0, 0],
    }
    assert found["out"] is out
    exact = a.double() @ b.double()
    for name, one in found.items():
        assert one.dtype == dtype, name
        # Half a unit in the last place, and the float32 sum's own error.
        assert bool(
            ((one.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5).all()
        ), name


@pytest.mark.parametrize("dtype", HALVES)
def test_where_the_processor_has_them_nothing_is_changed(monkeypatch, dtype):
    monkeypatch.setattr(products, "computes", lambda dtype: True)
    asked = []

    def operation(*arguments, **settings):
        asked.append((arguments, settings))
        return arguments[0]

    x = torch.ones(2, 2, dtype=dtype)
    assert product(operation, x, 3, out=None) is x
    assert asked == [((x, 3), {"out": None})]
    assert not widens(x)


def test_what_is_not_of_sixteen_bits_or_not_on_the_host_is_left_alone(none_here):
    assert not widens(torch.ones(2))
    assert not widens(torch.ones(2, dtype=torch.float64))
    assert not widens(torch.ones(2, dtype=torch.bfloat16, device="meta"))
    assert widens(torch.ones(2, dtype=torch.bfloat16))


def test_a_checkpoint_inside_a_network_of_others_still_meets_its_tensors(none_here):
    inner = foreign(torch.bfloat16)

    class Checkpointed(nn.Module):
        def forward(self, x):
            return checkpoint(inner, x, use_reentrant=False)

    x = normal(2, 3, 8, 8).bfloat16().requires_grad_()
    (found,) = torch.autograd.grad(call_frozen(Checkpointed(), x).float().square().sum(), x)
    (plain,) = torch.autograd.grad(call_frozen(inner, x).float().square().sum(), x)
    assert apart(found, plain) < 0.05


def test_under_autocast_products_are_of_rounded_arguments_and_weights_get_their_gradients(none_here):
    torch.manual_seed(0)
    network, x = Foreign(), normal(2, 3, 8, 8, dtype=torch.float32)

    def gradients(context) -> list[torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), context():
            loss = network(x).float().square().mean()
        loss.backward()
        return [weight.grad.clone() for weight in network.parameters()]

    seen = Seen()
    with seen:
        found = gradients(lambda: autocast_products(torch.device("cpu")))
    assert seen.products
    assert {kind for _, kind in seen.products} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert not isinstance(
            autocast_products(torch.device("cuda")), type(autocast_products(torch.device("cpu")))
        )
    network.double()
    exact = torch.autograd.grad(network(x.double()).square().mean(), list(network.parameters()))
    for one, truth in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert apart(one, truth) < 0.1 or float(truth.norm()) < 1e-6


def test_outside_autocast_it_has_no_effect(none_here):
    x = normal(3, 3, dtype=torch.float32)
    with autocast_products(torch.device("cpu")):
        assert torch.equal(x @ x, torch.matmul(x, x))
        assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize(
    ("network", "loss"), [(SmallClassifier, ClassifierLoss()), (SmallDenoiser, DenoiserLoss())]
)
def test_training_in_bfloat16_asks_for_no_slow_products(none_here, tmp_path, network, loss):
    seen = Seen()
    with seen:
        settings = {"out": tmp_path, "network": {"name": "small"}, "progress": False}
        fit(fresh(network), loss, few_digits(32), quick(steps=3, precision="bf16"), **settings)
    assert len(seen.products) > 6
    assert {kind for _, kind in seen.products} == {torch.float32}
