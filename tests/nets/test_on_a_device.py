"""What the networks ask of a CUDA device, found out without one: tensors say they are there, and torch acts like it.

torch's GroupNorm reads channels_last on the CPU only: elsewhere its forward kernel refuses it and its backward kernel
takes it for NCHW. What waits for the device, or copies from the host, cannot be recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastpure.kernels import use_backend
from fastpure.nets import frozen
from tests.nets import architectures
from tests.nets.helpers import output_and_vjp, plain_autograd
from tests.reverse.tracing import TracingRecorder

SIGMA, LABELS = torch.tensor([0.7, 2.0]), torch.tensor([80.0, 200.0])


class _Aten:
    """torch.ops.aten, with CUDA's GroupNorm backward."""

    def __getattr__(self, name: str):
        return getattr(torch.ops.aten, name)

    def native_group_norm_backward(self, v: Tensor, x: Tensor, *rest):
        assert v.is_contiguous(), "CUDA's kernel would read this as NCHW"
        assert x.is_contiguous(), "CUDA's kernel would read this as NCHW"
        return torch.ops.aten.native_group_norm_backward(v, x, *rest)


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside, tensors say that they lie on a CUDA device, and GroupNorm demands what it demands there."""
    plain = torch.native_group_norm

    def group_norm(x: Tensor, *rest):
        assert x.is_contiguous(), "Expected X.is_contiguous(memory_format) to be true, but got false."
        return plain(x, *rest)

    with (
        mock.patch.object(torch.Tensor, "is_cuda", property(lambda self: True)),
        mock.patch.object(torch, "native_group_norm", group_norm),
        mock.patch.object(frozen, "_ATEN", _Aten()),
        mock.patch.object(frozen, "can_pack", return_value=False),
        use_backend("reference"),
    ):
        yield


@pytest.fixture(params=architectures.CONFIGS)
def made(request):
    return architectures.denoiser(request.param)


def inputs(made, dtype, n_labels=1):
    generator = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, 2, *made.image_shape, generator=generator, dtype=torch.float64).to(dtype).unbind()
    labels = (SIGMA if made.time_input == "sigma" else LABELS)[:n_labels].to(dtype)
    return x, labels, torch.cat([v, v], 1) if made.learned_sigma else v


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_dtype_gets_a_norm_that_reads_its_layout(made, dtype):
    network, limit = (
        made.cast(dtype).network,
        {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 0.05},
    )
    x, labels, v = inputs(made, dtype)
    with plain_autograd(), use_backend("reference"):
        exact = output_and_vjp(made.cast(torch.float64).network, x.double(), labels.double(), v.double())
    with as_on_cuda():
        found = output_and_vjp(network, x, labels, v)
    for one, other in zip(found, exact, strict=True):
        assert relative(one, other) < limit[dtype]


def test_hooks_training_and_second_derivatives_too(made):
    network = made.cast(torch.float64).network
    x, labels, v = inputs(made, torch.float64, n_labels=2)
    w = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)

    def results() -> list[Tensor]:
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(leaf, labels), leaf, v, create_graph=True)
        found = [gradient.detach(), torch.autograd.grad(gradient, leaf, w)[0]]
        calls: list[int] = []
        looked_at = next(m for m in network.modules() if type(m).__name__ == "Conv")
        handle = looked_at.register_forward_hook(lambda *_: calls.append(1))
        found += output_and_vjp(network, x, labels, v)
        handle.remove()
        assert calls
        network.requires_grad_(True)
        network(x, labels).mul(v).sum().backward()
        found += [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        network.requires_grad_(False).zero_grad(set_to_none=True)
        return found

    # The other kernels of torch's attention have no second derivative.
    with plain_autograd(), use_backend("reference"), sdpa_kernel(SDPBackend.MATH):
        exact = results()
    with as_on_cuda():
        found = results()
    assert len(found) == len(exact) > 10
    for one, other in zip(found, exact, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)


def test_nothing_waits_for_the_device_or_comes_from_the_host(made):
    """The recorder that stands in for CUDA graphs refuses both."""
    network = made.network
    x, labels, v = inputs(made, torch.float32)
    rows = network.embedding(labels)
    found: dict[str, Tensor] = {}

    def work() -> None:
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            out = network.body(leaf, rows)
        found["v_x"] = torch.autograd.grad(out, leaf, v)[0]

    with as_on_cuda():
        (replay,) = TracingRecorder(torch.device("cpu")).record(work)
        recorded = found["v_x"]
        work()
        wanted = found["v_x"].clone()
        recorded.zero_()
        replay()
        assert torch.equal(recorded, wanted)
