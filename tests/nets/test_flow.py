"""Flow networks and consistency functions: what their answers and labels mean, where both have closed forms."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure import Denoiser, load_denoiser
from fastpure.anomaly import AnomalyDetector
from fastpure.certify.oneshot import OneShotClassifier
from fastpure.checkpoints import save_denoiser
from fastpure.nets import FLOWS, FlowPath
from fastpure.nets.oracle import GaussianMixture
from fastpure.schedule import VP
from fastpure.train import score_denoiser
from tests.nets.gaussian import (
    MEAN,
    SHAPE,
    STD,
    clean_given,
    consistency_denoiser,
    flow_denoiser,
    flowpure_denoiser,
    noise_given,
)
from tests.nets.helpers import normal, random_network
from tests.train.helpers import few_digits

CONVENTIONS = [(0, 1000.0), (0, 1.0), (1, 1.0), (1, 1000.0)]


def at(denoiser: Denoiser, alpha: float, sigma: float):
    return denoiser.conditioning([0.0], [0], [alpha], [sigma])


class Answers(nn.Module):
    """Answers what it is given, and remembers what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.x, self.labels = x, labels
        return self.answer


@pytest.mark.parametrize(("data_at", "time_scale"), CONVENTIONS)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.7, 0.3), (0.8, 0.6), (1.0, 0.5), (1.0, 2.0)])
def test_a_perfect_velocity_gives_back_noise_and_image(data_at, time_scale, alpha, sigma):
    """On the path and off it: the state is put on it, and time and sign are the network's own."""
    x0, noise = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    network = Answers(noise - x0 if data_at == 0 else x0 - noise)
    denoiser = Denoiser.from_module(
        network, "flow", image_shape=SHAPE, schedule="flow", data_at=data_at, time_scale=time_scale
    ).eval()
    x, s = alpha * x0 + sigma * noise, sigma / (alpha + sigma)
    found = denoiser.noise_pred(x, at(denoiser, alpha, sigma), 0)
    torch.testing.assert_close(found, noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(network.x, (1 - s) * x0 + s * noise)
    label = time_scale * (s if data_at == 0 else 1 - s)
    torch.testing.assert_close(network.labels, torch.full((2,), label))
    torch.testing.assert_close(denoiser.clean_of(x, network.answer, alpha, sigma), x0, rtol=0, atol=1e-12)
    levels = torch.full((2,), sigma / alpha, dtype=torch.float64)
    torch.testing.assert_close(denoiser.clean_image(x / alpha, levels), x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(network.labels, torch.full((2,), label))


def test_a_perfect_displacement_gives_back_the_clean_image():
    x0, attacked = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    for data_at, answer in ((0, attacked - x0), (1, x0 - attacked)):
        network = Answers(answer)
        denoiser = Denoiser.from_module(
            network, "flow", image_shape=SHAPE, schedule="flowpure", data_at=data_at, time_scale=1.0
        ).eval()
        x = x0 + 0.3 * (attacked - x0)
        found = denoiser.noise_pred(x, at(denoiser, 1.0, 0.3), 0)
        torch.testing.assert_close(found, attacked - x0)
        torch.testing.assert_close(network.labels, torch.full((2,), 0.3 if data_at == 0 else 0.7))
        torch.testing.assert_close(denoiser.clean_of(x, answer, 1.0, 0.3), x0)
        torch.testing.assert_close(denoiser.path.target(x0, attacked), answer)
        with pytest.raises(ValueError, match="`denoiser` must be one that knows noise levels"):
            denoiser.clean_image(x, torch.ones(2))


def test_derivatives_go_through_state_and_velocity():
    denoiser = Denoiser.from_module(
        random_network(dtype=torch.float64), "flow", image_shape=(2, 8, 8), schedule="flow"
    )
    x, levels = normal(1, 2, 8, 8).requires_grad_(True), at(denoiser, 0.8, 0.6)
    assert torch.autograd.gradcheck(lambda leaf: denoiser.noise_pred(leaf, levels, 0), x, fast_mode=True)
    sigma = torch.tensor([0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda leaf: denoiser.clean_image(leaf, sigma), x, fast_mode=True)


@pytest.mark.parametrize(("data_at", "time_scale"), CONVENTIONS)
def test_a_flow_network_is_the_same_defence_as_the_noise_network_of_the_same_data(data_at, time_scale):
    """DDIM, the reverse SDE and EDM's Heun with an exact velocity and with the exact noise prediction."""
    oracle = GaussianMixture(torch.full((1, 32), MEAN, dtype=torch.float64), STD)
    noise_net = Denoiser.from_module(oracle, "eps", image_shape=SHAPE).eval()
    flow_net = flow_denoiser(data_at, time_scale)
    u = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for method in (
        fp.methods.diffpure(t=0.1, dt=0.02),
        fp.methods.edm(n_steps=5),
        fp.methods.diffpure_ode(t=0.3, dt=0.03),
    ):
        ours, theirs = (
            fp.Purifier(net, method, precision="fp64", seed=3)(u) for net in (flow_net, noise_net)
        )
        # The mixture has no float64 weights, so its labels are told in float32.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_other_readers_of_answers_understand_a_velocity():
    """The detector, the certificate's denoiser and the training's score, each beside the closed form."""
    denoiser = flow_denoiser()
    u = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rebuilt = {
        kind: AnomalyDetector(net).reconstruct(u)
        for kind, net in (
            ("flow", denoiser),
            ("oracle", Denoiser.from_module(Oracle(), "x0", "sigma", SHAPE).eval()),
        )
    }
    torch.testing.assert_close(rebuilt["flow"], rebuilt["oracle"], rtol=0, atol=1e-6)
    certified = OneShotClassifier(denoiser, nn.Flatten().eval(), 0.25).clean(u)
    expected = (clean_given(2 * u - 1, 1.0, 0.5) + 1) / 2
    torch.testing.assert_close(certified, expected.clamp(0, 1), rtol=0, atol=1e-6)


class Oracle(nn.Module):
    def forward(self, y: Tensor, labels: Tensor) -> Tensor:
        return clean_given(y, 1.0, labels.view(-1, 1, 1, 1).to(y.dtype))


@pytest.mark.parametrize(("prediction", "schedule"), [("v", "linear"), ("flow", "flow")])
def test_the_score_of_a_training_converts_before_it_compares(prediction, schedule):
    """A network that knows the image has no error at any time, whatever it answers."""
    digits = few_digits(4)
    x0 = 2 * digits.batch(torch.arange(4)) - 1

    class Knows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unread = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            label = float(labels[0])
            if prediction == "flow":
                alpha, sigma = 1 - label / 1000, label / 1000
                return (x - x0) / sigma
            schedule = VP()
            alpha, sigma = schedule.alpha(label / 999), schedule.sigma(label / 999)
            return (alpha * x - x0) / sigma

    denoiser = Denoiser.from_module(Knows(), prediction, image_shape=(1, 8, 8), schedule=schedule).eval()
    for score in score_denoiser(denoiser, digits, (0.05, 0.2)):
        assert score.noise_mse < 1e-6
        assert score.psnr > 60


def test_conventions_of_flow_networks_travel(tmp_path):
    network = random_network()
    for schedule in FLOWS:
        denoiser = Denoiser.from_module(
            network, "flow", image_shape=(2, 8, 8), schedule=schedule, data_at=1, time_scale=7.0
        )
        file = save_denoiser(denoiser, tmp_path / "net.safetensors")
        for other in (load_denoiser(file), denoiser.cast(torch.float64), denoiser.compiled("eager")):
            assert other.path == FlowPath(schedule, 1, 7.0)
            assert (other.prediction, other.schedule) == ("flow", schedule)
        described = json.loads(json.dumps(load_denoiser(file).describe()))
        assert (described["data_at"], described["time_scale"]) == (1, 7.0)
    assert "data_at" not in Denoiser.from_module(network, image_shape=(2, 8, 8)).describe()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "flow"}, "`schedule` must be 'flow' or 'flowpure'.*'linear' with prediction 'flow'"),
        ({"schedule": "flow"}, "`schedule` must be .*'flow' with prediction 'eps'"),
        (
            {"prediction": "flow", "schedule": "flow", "time_input": "index"},
            "`time_input` must be 'continuous'",
        ),
        (
            {"prediction": "flow", "schedule": "flow", "time_input": "sigma"},
            "`time_input` must be 'continuous'",
        ),
        ({"prediction": "flow", "schedule": "flow", "data_at": 2}, "`data_at` must be an integer"),
        ({"prediction": "flow", "schedule": "flow", "time_scale": 0.0}, "`time_scale` must be"),
        ({"data_at": 1}, "`data_at` must be None where prediction is not 'flow'"),
        ({"time_scale": 1.0}, "`time_scale` must be None"),
        ({"prediction": "consistency"}, "`time_input` must be 'sigma' for a consistency function"),
    ],
)
def test_conventions_that_exclude_each_other(arguments, message):
    with pytest.raises(ValueError, match=message):
        Denoiser.from_module(nn.Identity(), image_shape=SHAPE, **arguments)


def test_a_consistency_function_answers_the_image():
    denoiser, y = consistency_denoiser(0.01), normal(3, *SHAPE)
    levels = torch.tensor([0.01, 0.5, 2.0], dtype=torch.float64)
    image = denoiser.clean_image(y, levels)
    torch.testing.assert_close(image[0], y[0])  # the boundary
    for k, (alpha, sigma) in enumerate(((0.8, 0.6), (1.0, 0.5), (0.3, 0.9))):
        x = alpha * y
        noise = denoiser.noise_pred(x, at(denoiser, alpha, sigma), 0)
        expected = denoiser.clean_image(y, torch.full((3,), sigma / alpha, dtype=torch.float64))
        torch.testing.assert_close((x - sigma * noise) / alpha, expected), k


def test_consistency_scalings_are_those_of_the_paper():
    """D = c_skip y + c_out F(c_in y, 250 ln s), written out; the identity at and below sigma_min."""
    inner = {
        "image_size": 8,
        "channels": 2,
        "nf": 8,
        "ch_mult": [1, 2],
        "n_blocks": 1,
        "attn_resolutions": [],
    }
    config = {
        "architecture": "edm",
        "network": {"architecture": "ddpmpp", **inner},
        "preconditioning": "consistency",
        "sigma_data": 0.4,
        "sigma_min": 0.01,
    }
    denoiser = Denoiser.from_config(config, seed=1).cast(torch.float64)
    assert (denoiser.prediction, denoiser.time_input) == ("consistency", "sigma")
    y = normal(2, 2, 8, 8)
    for s in (0.05, 0.5, 3.0):
        gap, width = s - 0.01, (s**2 + 0.16) ** 0.5
        label = torch.full((2,), s, dtype=torch.float64)
        f = denoiser.network.network(y / width, 250 * label.log())
        expected = 0.16 / (gap**2 + 0.16) * y + 0.4 * gap / width * f
        torch.testing.assert_close(denoiser.clean_image(y, label), expected, rtol=0, atol=1e-12)
    for s in (0.01, 0.001):
        assert torch.equal(denoiser.clean_image(y, torch.full((2,), s, dtype=torch.float64)), y)


def test_a_consistency_network_of_our_own_survives_our_format(tmp_path):
    inner = {"image_size": 8, "channels": 1, "nf": 4, "ch_mult": [1], "n_blocks": 1, "attn_resolutions": []}
    config = {"architecture": "edm", "network": inner, "preconditioning": "consistency", "sigma_min": 0.01}
    denoiser = Denoiser.from_config(config)
    again = load_denoiser(save_denoiser(denoiser, tmp_path / "net.safetensors"))
    assert again.describe() == denoiser.describe()
    assert again.prediction == "consistency"
    assert again.network.config.sigma_min == 0.01


def test_the_closed_forms_are_what_they_say():
    """The toys themselves: mean and noise add up to the state, and the displacement is FlowPure's."""
    x = normal(2, *SHAPE)
    torch.testing.assert_close(0.7 * clean_given(x, 0.7, 0.3) + 0.3 * noise_given(x, 0.7, 0.3), x)
    denoiser = flowpure_denoiser(0.5)
    answer = denoiser(x, torch.tensor([0.25, 0.25], dtype=torch.float64))
    torch.testing.assert_close(answer, -0.5 * noise_given(x, 1.0, 0.375))
