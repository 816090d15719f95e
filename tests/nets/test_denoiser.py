"""The `Denoiser` interface: conventions converted by hand formulas, hoisting, casting, clear errors."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastpure import Denoiser
from fastpure.nets import TIME_INPUTS, DDPMpp
from tests.nets.helpers import golden_denoiser, normal, random_network

SHAPE = (2, 4, 4)
TAU = np.array([np.nan, 99.9, 50.5])
INDEX = np.array([0, 100, 50])
ALPHA = np.array([1.0, 0.8, 0.9])
SIGMA = np.array([0.0, 0.6, 0.7])


class Recorder(nn.Module):
    """A nonlinear function of image and label that remembers what it was given."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(channels, 2, dtype=torch.float32))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((x.detach(), labels))
        mixed = torch.einsum("oc,bchw->bohw", self.weight, x)
        return torch.tanh(mixed) + 0.01 * labels.to(x.dtype).view(-1, 1, 1, 1)


def make(prediction: str = "eps", time_input: str = "continuous", **options) -> Denoiser:
    return Denoiser.from_module(Recorder(), prediction, time_input, SHAPE, **options).eval()


def table(denoiser: Denoiser):
    return denoiser.conditioning(TAU, INDEX, ALPHA, SIGMA)


CONVENTIONS = [pair for pair in product(("eps", "x0", "v"), TIME_INPUTS) if pair != ("v", "sigma")]
CONVENTIONS += [("consistency", "sigma")]
"""Those of flow networks are in test_flow.py."""


@pytest.mark.parametrize(("prediction", "time_input"), CONVENTIONS)
def test_predicted_noise_follows_the_formula(prediction, time_input):
    denoiser = make(prediction, time_input)
    x = normal(3, *SHAPE, dtype=torch.float32)
    for k in (1, 2):
        alpha, sigma = float(ALPHA[k]), float(SIGMA[k])
        label = {"continuous": TAU[k], "index": INDEX[k], "sigma": sigma / alpha}[time_input]
        seen = x / alpha if time_input == "sigma" else x
        output = denoiser.network(seen, torch.full((3,), float(label)))
        expected = {
            "eps": output,
            "x0": (x - alpha * output) / sigma,
            "v": (sigma * x + alpha * output) / (alpha**2 + sigma**2),
            "consistency": (x - alpha * output) / sigma,
        }[prediction]
        torch.testing.assert_close(denoiser.noise_pred(x, table(denoiser), k), expected, rtol=1e-5, atol=1e-6)
        given, labels = denoiser.network.seen[-1]
        torch.testing.assert_close(given, seen)
        assert labels.shape == (3,)
        assert labels.dtype == (torch.int64 if time_input == "index" else torch.float32)
        torch.testing.assert_close(
            labels.double(), torch.full((3,), float(label)).double(), rtol=1e-7, atol=0
        )


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_perfect_network_returns_the_noise(prediction):
    """Whatever it predicts, a network that knows the clean image and the noise leads to the noise."""
    x0, noise = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    alpha, sigma = 0.8, 0.6
    answer = {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0}[prediction]

    class Oracle(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return answer

    denoiser = Denoiser.from_module(Oracle(), prediction, "index", SHAPE).eval()
    result = denoiser.noise_pred(alpha * x0 + sigma * noise, table(denoiser), 1)
    torch.testing.assert_close(result, noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("prediction", "time_input"), [("x0", "sigma"), ("v", "index"), ("eps", "continuous")]
)
def test_gradient_flows_through_the_conversion(prediction, time_input):
    denoiser = make(prediction, time_input).cast(torch.float64)
    conditioning = table(denoiser)
    x = normal(1, *SHAPE).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda leaf: denoiser.noise_pred(leaf, conditioning, 1), x)


def test_learned_variance_is_dropped():
    network = Recorder(channels=4)
    denoiser = Denoiser.from_module(network, "eps", "continuous", SHAPE, learned_sigma=True).eval()
    x = normal(2, *SHAPE, dtype=torch.float32)
    labels = torch.full((2,), 99.9)
    assert torch.equal(denoiser.noise_pred(x, table(denoiser), 1), network(x, labels)[:, :2])
    assert torch.equal(denoiser(x, labels), network(x, labels)[:, :2])
    plain = Denoiser.from_module(network, "eps", "continuous", SHAPE).eval()
    with pytest.raises(ValueError, match=r"\[2, 2, 4, 4\].*\[2, 4, 4, 4\].*learned_sigma"):
        plain.noise_pred(x, table(plain), 1)


def test_hoisted_embeddings_equal_the_direct_call():
    denoiser = golden_denoiser("ddpmpp_tiny").cast(torch.float64)
    x = normal(2, 3, 16, 16)
    conditioning = table(denoiser)
    assert conditioning.embeddings.shape[0] == len(conditioning) == 3
    for k in (1, 2):
        direct = denoiser(x, torch.full((2,), TAU[k], dtype=torch.float64))
        torch.testing.assert_close(denoiser.noise_pred(x, conditioning, k), direct, rtol=0, atol=1e-12)


def test_weights_in_training_are_not_hoisted():
    """Otherwise the time embedding would silently get no gradient."""
    denoiser = Denoiser.from_config("ddpmpp-digits")
    denoiser.noise_pred(normal(2, 1, 8, 8, dtype=torch.float32), table(denoiser), 1).square().sum().backward()
    assert denoiser.network.all_modules[0].weight.grad.abs().max() > 0
    assert table(denoiser).embeddings is None
    assert table(denoiser.frozen()).embeddings is not None


def test_dtypes_and_layouts():
    denoiser = golden_denoiser("ddpmpp_tiny")
    x = normal(2, 3, 16, 16, dtype=torch.float32)
    exact = denoiser.cast(torch.float64).noise_pred(x.double(), table(denoiser.cast(torch.float64)), 1)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        cast = denoiser.cast(dtype)
        for state in (x, x.contiguous(memory_format=torch.channels_last)):
            noise = cast.noise_pred(state, table(cast), 1)
            assert noise.dtype == torch.float32
            assert noise.stride() == state.stride()
            assert (noise - exact).abs().max() < tolerance * exact.abs().max()


def test_cast_and_frozen_leave_the_original_alone():
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).train()
    denoiser = Denoiser.from_module(network, "eps", "continuous", SHAPE)
    copy = denoiser.cast(torch.float64)
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in copy.parameters())
    assert copy.network[1].running_var.dtype == torch.float64
    assert copy.network[1].num_batches_tracked.dtype == torch.int64
    assert not any(module.training for module in copy.modules())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in network.parameters())
    assert network.training
    shared = denoiser.frozen()
    for ours, theirs in zip(shared.parameters(), network.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
        assert not ours.requires_grad
    assert shared.describe() == denoiser.describe()


def test_tied_weights_stay_tied():
    network = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    network[1].weight = network[0].weight
    copy = Denoiser.from_module(network, image_shape=SHAPE).cast(torch.float64).network
    assert copy[0].weight is copy[1].weight


def test_describe_is_json_able():
    description = golden_denoiser("ddpmpp_tiny").describe()
    assert json.loads(json.dumps(description)) == description
    assert description["parameters"] == 260_755
    assert Denoiser.from_config(description["config"]).describe() == description
    assert make().describe()["config"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "noise"}, "`prediction` must be one of 'eps', 'x0', 'v', 'flow', 'consistency', got"),
        ({"time_input": "t"}, "`time_input` must be one of"),
        ({"prediction": "v", "time_input": "sigma"}, "`prediction`"),
        ({"image_shape": (32, 32)}, "`image_shape` must be"),
        ({"image_shape": (3, 0, 32)}, "`image_shape` must be"),
    ],
)
def test_unknown_conventions(arguments, message):
    with pytest.raises(ValueError, match=message):
        Denoiser.from_module(Recorder(), **{"image_shape": SHAPE, **arguments})


def test_module_must_be_a_module():
    with pytest.raises(TypeError, match="`module` must be a torch"):
        Denoiser.from_module(lambda x, t: x, image_shape=SHAPE)


def test_training_mode_is_an_error_not_a_weaker_defence():
    denoiser = make()
    denoiser.train()
    with pytest.raises(ValueError, match=r"evaluation mode.*eval\(\)"):
        denoiser.noise_pred(normal(1, *SHAPE, dtype=torch.float32), table(denoiser), 1)


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 4, 4), (1, 2, 4, 5)])
def test_wrong_image_shape(shape):
    denoiser = make()
    with pytest.raises(ValueError, match=r"`x` must be of shape \[B, 2, 4, 4\], got"):
        denoiser.noise_pred(normal(*shape, dtype=torch.float32), table(denoiser), 1)
    with pytest.raises(ValueError, match="`x` must be of shape"):
        denoiser(normal(*shape, dtype=torch.float32), torch.ones(1))


def test_integer_images():
    denoiser = make()
    with pytest.raises(TypeError, match=r"`x` must be floating, got torch\.uint8"):
        denoiser.noise_pred(torch.zeros(1, *SHAPE, dtype=torch.uint8), table(denoiser), 1)


@pytest.mark.parametrize("output", [lambda x: x[:, :1], lambda x: x[..., :2], lambda x: (x, x)])
def test_wrong_network_output(output):
    class Wrong(nn.Module):
        def forward(self, x: Tensor, labels: Tensor):
            return output(x)

    denoiser = Denoiser.from_module(Wrong(), image_shape=SHAPE).eval()
    with pytest.raises(ValueError, match="`denoiser` must be a network that returns"):
        denoiser.noise_pred(normal(1, *SHAPE), table(denoiser), 1)


@pytest.mark.parametrize("k", [0, 3, -1])
def test_steps_without_a_network_call(k):
    """Step 0 diffuses forward: its label is NaN and its sigma 0."""
    denoiser = make()
    with pytest.raises(ValueError, match="`k` must be"):
        denoiser.noise_pred(normal(1, *SHAPE, dtype=torch.float32), table(denoiser), k)


def test_unusable_steps_do_not_disturb_the_others():
    denoiser = golden_denoiser("ddpmpp_tiny")
    found = denoiser.conditioning(np.array([math.nan, 5.0]), INDEX[:2], ALPHA[:2], SIGMA[:2])
    assert torch.isfinite(found.embeddings).all()


def test_columns_of_different_length():
    with pytest.raises(ValueError, match="of one length"):
        make().conditioning(TAU, INDEX, ALPHA, SIGMA[:2])


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ("ddpmpp-cifar100", ValueError, "'ddpmpp-cifar10'"),
        ({"architecture": "unet"}, ValueError, "`architecture`"),
        ({"image_size": 8, "width": 3}, ValueError, "'width'"),
        ({"nf": 16}, ValueError, "image_size"),
        (7, TypeError, "a name or a dict"),
    ],
)
def test_unknown_configurations(config, kind, message):
    with pytest.raises(kind, match=message):
        Denoiser.from_config(config)


def test_from_config_dict():
    fields = {
        "architecture": "ddpmpp",
        "image_size": 8,
        "channels": 1,
        "nf": 8,
        "ch_mult": [1],
        "n_blocks": 1,
    }
    denoiser = Denoiser.from_config(fields)
    assert isinstance(denoiser.network, DDPMpp)
    assert denoiser.image_shape == (1, 8, 8)
    assert not denoiser.network.training


def test_one_embedding_per_image_matches_one_for_all():
    network = random_network(dtype=torch.float64)
    x, one = normal(3, 2, 8, 8), network.embedding(torch.tensor([40.0]))
    torch.testing.assert_close(network.body(x, one), network.body(x, one.expand(3, -1)), rtol=0, atol=1e-12)
