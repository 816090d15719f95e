"""Every architecture on the Triton kernels, against torch's own operations and autograd."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from fastpure.kernels import use_backend
from fastpure.nets import Denoiser, fused
from tests.kernels.closeness import distance
from tests.kernels.triton.cases import DEVICE
from tests.nets import architectures
from tests.nets.helpers import output_and_vjp, plain_autograd

LIMIT = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Relative L2 error against float64; measured in float32 (interpreter): at most 1.1e-6 (output), 2.1e-6 (gradient)."""

SIGMA, LABELS = torch.tensor([0.7, 2.0]), torch.tensor([80.0, 200.0])
NETWORKS = ("digits", *architectures.CONFIGS)
if DEVICE == "cuda":  # every shape is compiled, which takes longer than running it: one network of every kind
    NETWORKS = ("digits", "ddpm blocks", "edm on filtered", "adm", "adm, convolutions between levels")


def denoiser(name: str) -> Denoiser:
    if name != "digits":
        return architectures.denoiser(name)
    made = Denoiser.from_config("ddpmpp-digits", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return made.frozen()


def inputs(made: Denoiser, n_labels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels (one for all, or one each) and a cotangent, in float64."""
    generator = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, 2, *made.image_shape, generator=generator, dtype=torch.float64).unbind()
    labels = (SIGMA if made.time_input == "sigma" else LABELS)[:n_labels]
    return x, labels, torch.cat([v, v], 1) if made.learned_sigma else v


@pytest.mark.parametrize("n_labels", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])])
@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_gradient_are_those_of_torch(name, dtype, n_labels):
    made = denoiser(name)
    x, labels, v = inputs(made, n_labels)
    with plain_autograd(), use_backend("reference"):
        exact = output_and_vjp(made.cast(torch.float64).network.cpu(), x, labels.double(), v)
    network = made.cast(dtype).network.to(DEVICE)
    given = (x.to(DEVICE, dtype), labels.to(DEVICE), v.to(DEVICE, dtype))
    with use_backend("triton"), mock.patch.object(fused, "enter", wraps=fused.enter) as entered:
        found = output_and_vjp(network, *given)
        with torch.no_grad():
            without_gradient = network(*given[:2])
    assert entered.call_count > 10
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        assert distance(one, other).rel_l2 < LIMIT[dtype]
    assert torch.equal(without_gradient, found[0])


@pytest.mark.parametrize("name", ["digits", "ddpm blocks", "filtered, residual input", "adm"])
def test_a_later_block_that_reads_a_skip_counts_in_the_gradient(name):
    """The cotangent of a tensor with two readers arrives in one kernel: leaving either out must show."""
    made = denoiser(name)
    x, labels, v = inputs(made, 1)
    network = made.network.to(DEVICE)
    given = (x.to(DEVICE, torch.float32), labels.to(DEVICE), v.to(DEVICE, torch.float32))
    real = fused.group_norm_silu_vjp
    with use_backend("triton"):
        _, whole = output_and_vjp(network, *given)
        for forgotten in ("more", "add"):
            with mock.patch.object(
                fused,
                "group_norm_silu_vjp",
                lambda *a, **k: real(*a, **{**k, forgotten: None}),  # noqa: B023
            ):
                _, part = output_and_vjp(network, *given)
            assert distance(part, whole.double()).rel_l2 > 100 * LIMIT[torch.float32], forgotten
