"""The DDPM++ network against the reference implementation's numbers, names and sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastpure.nets import CONFIGS, DDPMpp, DDPMppConfig, Denoiser
from fastpure.nets.layers import sinusoid
from tests.golden import arrays, config, relative_error
from tests.nets.helpers import golden_denoiser, normal, output_and_vjp, random_network

GOLDEN = ("ddpmpp_tiny", "ddpmpp_ddpmblock_tiny")


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerances"),
    [(torch.float32, "", (5e-6, 2e-5)), (torch.float64, "_f64", (1e-12, 1e-12))],
)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_output_and_vjp(name, dtype, suffix, tolerances, trainable):
    io = {key: torch.from_numpy(value) for key, value in arrays(f"{name}_io").items()}
    network = golden_denoiser(name).cast(dtype).network.requires_grad_(trainable)
    output, vjp = output_and_vjp(network, io["x"].to(dtype), io["t"], io["v"].to(dtype))
    assert relative_error(output, io[f"out{suffix}"]) < tolerances[0]
    assert relative_error(vjp, io[f"vjp{suffix}"]) < tolerances[1]


@pytest.mark.parametrize("name", GOLDEN)
def test_parameter_order(name):
    """Averaged weights of training checkpoints are a list without names: the order is part of the format."""
    names = [key for key, _ in golden_denoiser(name).network.named_parameters()]
    assert names == config(name)["parameter_order"]


def test_official_network_has_the_published_parameters():
    published = config("keys_score_sde_cifar10_ddpmpp_deep_continuous")
    with torch.device("meta"):
        network = DDPMpp(CONFIGS["ddpmpp-cifar10"])
    ours = [[name, list(value.shape)] for name, value in network.named_parameters()]
    assert ours == [entry[:2] for entry in published["entries"] if entry[0] not in published["buffers"]]
    assert sum(value.numel() for value in network.parameters()) == 106_632_579 == published["param_count"]


def test_digits_network_is_small():
    network = Denoiser.from_config("ddpmpp-digits").network
    assert sum(value.numel() for value in network.parameters()) * 4 < 2_000_000


def test_embedding_is_hoisted_exactly():
    """One embedding for all images, one per image and the direct forward pass are one function."""
    network = random_network(dtype=torch.float64)
    x = normal(3, 2, 8, 8)
    labels = torch.tensor([99.9, 3.0, 500.25])
    direct = network(x, labels)
    embeddings = network.embedding(labels)
    assert embeddings.shape == (3, 2 * sum(step.outputs for step in network.steps if step.kind == "block"))
    for i in range(3):
        alone = network.body(x, embeddings[i : i + 1])
        torch.testing.assert_close(alone[i], direct[i], rtol=0, atol=1e-12)
    assert not torch.allclose(direct, network.body(x, embeddings[:1]), atol=1e-3)


def test_sinusoid_is_the_reference_formula_in_float64():
    table = sinusoid(torch.tensor([99.9, 0.0]), 6)
    expected = [[torch.sin(torch.tensor(99.9).double() * 1e4 ** (-i / 2)) for i in range(3)], [0.0] * 3]
    torch.testing.assert_close(table[:, :3], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(table[:, :3] ** 2 + table[:, 3:] ** 2, torch.ones(2, 3, dtype=torch.float64))


def test_half_precision_network_sees_the_exact_label():
    """bfloat16 cannot tell 99.9 from 100; the embedding is computed before rounding."""
    network = random_network().to(torch.bfloat16)
    embeddings = network.embedding(torch.tensor([99.9, 100.0]))
    assert embeddings.dtype == torch.bfloat16
    exact = network.double().embedding(torch.tensor([99.9, 100.0]))
    assert relative_error(embeddings.double(), exact) < 2**-8
    assert not torch.equal(embeddings[0], embeddings[1])


def test_memory_layout_of_the_input_is_irrelevant():
    network = random_network()
    x = normal(2, 2, 8, 8, dtype=torch.float32)
    labels = torch.tensor([5.0, 7.0])
    strided = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(network(x, labels), network(strided, labels))


def test_dropout_acts_in_training_only():
    network = random_network()
    x, labels = normal(2, 2, 8, 8, dtype=torch.float32), torch.tensor([5.0, 7.0])
    assert torch.equal(network(x, labels), network(x, labels))
    network.train()
    assert not torch.equal(network(x, labels), network(x, labels))


def test_initial_weights_depend_on_the_seed_only():
    def weights(seed: int) -> list[Tensor]:
        return list(Denoiser.from_config("ddpmpp-digits", seed=seed).network.parameters())

    state = torch.get_rng_state()
    first, torch_state = weights(3), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch_state)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights(4), strict=True))


def test_init_scale_zero_starts_from_almost_nothing():
    x, labels = normal(2, 1, 8, 8, dtype=torch.float32), torch.tensor([5.0, 7.0])
    ordinary = Denoiser.from_config("ddpmpp-digits")(x, labels)
    almost_zero = Denoiser.from_config("ddpmpp-digits", init_scale=0)(x, labels)
    assert 0.1 < ordinary.std() < 10
    assert almost_zero.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nf": 18}, "nf"),
        ({"nf": 2}, "nf"),
        ({"image_size": 10, "ch_mult": (1, 2, 2)}, "image_size"),
        ({"ch_mult": ()}, "ch_mult"),
        ({"ch_mult": (1, 0)}, "ch_mult"),
        ({"n_blocks": 0}, "n_blocks"),
        ({"block": "resnet"}, "block"),
        ({"dropout": 1.0}, "dropout"),
        ({"attn_resolutions": (8.5,)}, "attn_resolutions"),
    ],
)
def test_impossible_configurations_are_named(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DDPMppConfig(**{"image_size": 8, **fields})
