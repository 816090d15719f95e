"""Flow matching and FlowPure: states, targets and labels; the attack; training approaches a known velocity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import fastpure as fp
from fastpure.cli.train import app
from fastpure.data import load_dataset
from fastpure.errors import ResumeError
from fastpure.schedule import VP
from fastpure.train import (
    DENOISER_RECIPES,
    Batch,
    EdmDenoiserLoss,
    FlowLoss,
    FlowPureLoss,
    FlowTimes,
    StepRandom,
    Trainer,
    score_loss,
)
from fastpure.train.batches import Purpose
from fastpure.train.measure import Nothing
from fastpure.train.networks import check_conventions, conventions, new_denoiser
from fastpure.train.recipes import flow_times
from tests.nets.gaussian import MEAN, STD
from tests.train.helpers import SmallDenoiser, batch_of, few_digits, fresh, guide, quick

CPU = torch.device("cpu")
SMALL = ["--steps", "3", "--batch-size", "8"]


class Recorder(nn.Module):
    """Keeps what it was asked, answers zero."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.x, self.labels = x, labels
        return torch.zeros_like(x)


@pytest.mark.parametrize(("data_at", "scale"), [(0, 1000.0), (1, 1.0)])
def test_flow_loss_asks_for_the_velocity_on_the_straight_path(data_at: int, scale: float) -> None:
    recorder, batch = Recorder(), batch_of(64)
    losses = FlowLoss(FlowTimes(0.6, data_at, scale))(recorder, batch)
    time = recorder.labels / scale
    s = time if data_at == 0 else 1 - time
    assert 0.5 < s.max() <= 0.6
    assert s.min() < 0.1
    x0, noise = 2 * batch.images - 1, batch.random.normal(Purpose.NOISE, (1, 8, 8))
    s = s.view(-1, 1, 1, 1)
    torch.testing.assert_close(recorder.x, (1 - s) * x0 + s * noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(losses, (noise - x0).square().mean((1, 2, 3)))


@pytest.mark.parametrize("data_at", [0, 1])
def test_a_network_that_knows_the_velocity_has_no_loss(data_at: int) -> None:
    batch, levels = batch_of(8), FlowTimes(data_at=data_at)
    x0, noise = 2 * batch.images - 1, batch.random.normal(Purpose.NOISE, (1, 8, 8))

    class Knows(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return noise - x0 if data_at == 0 else x0 - noise

    assert FlowLoss(levels)(Knows(), batch).max() == 0
    level = levels.draw(batch.random)
    clean = levels.clean(level.noisy(x0, noise), Knows()(x0, level.labels), level)
    torch.testing.assert_close(clean, x0, rtol=0, atol=1e-5)


def test_the_largest_time_is_the_noise_level_of_the_vp_schedule() -> None:
    levels = flow_times(0.3)
    assert levels.t_max / (1 - levels.t_max) == pytest.approx(VP().sigma(0.3) / VP().alpha(0.3))
    assert FlowLoss(levels).t_max == pytest.approx(0.3)
    assert (flow_times(1.0).t_max, FlowLoss().t_max) == (1.0, 1.0)


class Guess(nn.Module):
    """The exact answer for pixels N(mean, std^2), whose mean and deviation are its two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(-0.5)), nn.Parameter(torch.tensor(0.8))

    def noise(self, x: Tensor, alpha: Tensor | float, sigma: Tensor) -> Tensor:
        """E[noise | alpha x0 + sigma noise = x]."""
        return sigma / (alpha**2 * self.std**2 + sigma**2) * (x - alpha * self.mean)


class GuessedFlow(Guess):
    """E[noise - x0 | x], told 1000 s."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        s = (labels / 1000).view(-1, 1, 1, 1)
        noise = self.noise(x, 1 - s, s)
        return noise - (x - s * noise) / (1 - s)


class GuessedDisplacement(Guess):
    """E[x0 - attacked | x] for Gaussian perturbations of size 0.6, told t."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        s = 1 - labels.view(-1, 1, 1, 1)
        return -0.6 * self.noise(x, 1.0, 0.6 * s)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        (GuessedFlow, FlowLoss(FlowTimes(0.9))),
        (GuessedDisplacement, FlowPureLoss("gaussian", sigma=0.6, time_scale=1.0)),
    ],
)
def test_training_approaches_the_known_velocity(kind: type[Guess], loss: FlowLoss | FlowPureLoss) -> None:
    """The loss is least at the data's own mean and deviation, so training finds them from anywhere near."""
    model = kind()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    generator = torch.Generator().manual_seed(0)
    for step in range(120):
        pixels = MEAN + STD * torch.randn(64, 1, 8, 8, generator=generator)
        batch = Batch((pixels + 1) / 2, torch.zeros(64, dtype=torch.int64), StepRandom(0, step, 0, 64, CPU))
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()
        schedule.step()
    assert model.mean.item() == pytest.approx(MEAN, abs=0.02)
    assert abs(model.std.item()) == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("data_at", [0, 1])
@pytest.mark.parametrize("path_noise", [0.0, 0.3])
def test_flowpure_s_state_target_and_label(data_at: int, path_noise: float) -> None:
    recorder, batch = Recorder(), batch_of(32)
    loss = FlowPureLoss(classifier=guide(), eps=0.2, path_noise=path_noise, data_at=data_at, time_scale=10.0)
    values = loss(recorder, batch)
    x0 = 2 * batch.images - 1
    attacked = loss.attacked(x0, batch.labels, batch.random)
    time = recorder.labels / 10
    t = (time if data_at == 1 else 1 - time).view(-1, 1, 1, 1)
    assert 0 <= t.min() < 0.2
    assert 0.8 < t.max() <= 1
    noise = batch.random.normal(Purpose.INNER_NOISE, (1, 8, 8))
    expected = (1 - t) * attacked + t * x0 + path_noise * noise
    torch.testing.assert_close(recorder.x, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(values, (x0 - attacked).square().mean((1, 2, 3)))

    class Knows(nn.Module):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return x0 - attacked if data_at == 1 else attacked - x0

    assert loss(Knows(), batch).max() == 0


def test_flowpure_s_attack_stays_in_the_ball_and_misleads() -> None:
    batch, classifier = batch_of(64), fp.load_classifier("digits")
    x0 = 2 * batch.images - 1
    start, found = (
        FlowPureLoss(classifier=classifier, eps=0.2, step_size=0.05, attack_steps=n).attacked(
            x0, batch.labels, batch.random
        )
        for n in (0, 10)
    )
    for attacked in (start, found):
        assert float((attacked - x0).abs().max()) <= 0.4 + 1e-6
        assert float(attacked.abs().max()) <= 1
    after = [F.cross_entropy(classifier((x + 1) / 2), batch.labels) for x in (start, found)]
    assert after[1] > after[0] + 1


def test_flowpure_learns_to_undo_an_attack() -> None:
    """A run of 150 steps through the loop's own trainer: less loss on held-out images than doing nothing."""
    loss = FlowPureLoss(classifier=guide(), eps=0.2, step_size=0.05, attack_steps=3)
    config = quick(steps=150, batch_size=64, lr=5e-3)
    trainer = Trainer(fresh(SmallDenoiser), loss, few_digits(400), config)
    for _ in range(config.steps):
        trainer.advance()
    held = load_dataset("digits", "test").subset(64)
    nothing, learned = (score_loss(model, loss, held, CPU) for model in (Nothing(), trainer.average))
    assert learned < 0.85 * nothing


def test_networks_of_the_losses_have_their_conventions() -> None:
    recipe = DENOISER_RECIPES["digits"].with_schedule("flow", 0.3)
    denoiser = new_denoiser(recipe)
    assert (denoiser.prediction, denoiser.schedule) == ("flow", "flow")
    check_conventions("network", denoiser, *conventions(recipe.loss))
    turned = replace(recipe, loss=FlowLoss(FlowTimes(data_at=1)))
    with pytest.raises(ValueError, match="`network` must be a denoiser that predicts 'flow'"):
        check_conventions("network", denoiser, *conventions(turned.loss))
    with pytest.raises(ValueError, match="`network` must be a denoiser that predicts"):
        check_conventions("network", denoiser, *conventions(EdmDenoiserLoss()))
    with pytest.raises(ValueError, match="`network` must be a denoiser that predicts 'flow'"):
        check_conventions("network", fp.load_denoiser("digits"), *conventions(recipe.loss))


@pytest.fixture
def _score_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpure.train.runs.SCORED_IMAGES", 8)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("_score_few_images")
def test_flow_command_exports_a_network_for_the_method(tmp_path: Path) -> None:
    assert "noise error" in _run("denoiser", "--schedule", "flow", "--out", str(tmp_path), *SMALL)
    denoiser = fp.load_denoiser(tmp_path / "denoiser.safetensors")
    assert (denoiser.prediction, denoiser.schedule, denoiser.path.data_at) == ("flow", "flow", 0)
    x = load_dataset("digits", "test").images[:2]
    assert fp.Purifier(denoiser, fp.methods.flow(n_steps=2))(x).shape == x.shape


@pytest.mark.usefixtures("_score_few_images")
@pytest.mark.parametrize("words", [["--eps", "0.1"], ["--perturbation", "gaussian", "--sigma", "0.4"]])
def test_flowpure_command_exports_a_network_for_the_method(tmp_path: Path, words: list[str]) -> None:
    command = ["flowpure", "--out", str(tmp_path), *SMALL]
    assert "of a network that answers zero" in _run(*command, *words)
    denoiser = fp.load_denoiser(tmp_path / "denoiser.safetensors")
    assert (denoiser.prediction, denoiser.schedule, denoiser.path.data_at) == ("flow", "flowpure", 1)
    held = json.loads((tmp_path / "result.json").read_text())["held_out"]
    assert held["images"] == 8
    assert held["of_zero"] > 0
    x = load_dataset("digits", "test").images[:2]
    sigma = 0.4 if "gaussian" in words else 0.0
    assert fp.Purifier(denoiser, fp.methods.flowpure(sigma, n_steps=2))(x).shape == x.shape
    assert "was finished before" in _run(*command, *words)
    with pytest.raises(ResumeError, match=r"loss\.path_noise"):
        _run(*command, *words, "--path-noise", "0.1")


def test_mistakes_are_named() -> None:
    for settings, message in (
        ({}, "`classifier` must be given for perturbation 'attack'"),
        ({"perturbation": "gaussian", "classifier": guide()}, "`classifier` must be None"),
        ({"perturbation": "noise"}, "`perturbation` must be one of"),
        ({"perturbation": "gaussian", "sigma": 0.0}, "`sigma` must be"),
        ({"perturbation": "gaussian", "path_noise": -1.0}, "`path_noise` must be"),
        ({"perturbation": "gaussian", "data_at": 2}, "`data_at` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            FlowPureLoss(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`t_max` must be a time"):
        FlowTimes(t_max=1.5)
    for words, message in (
        (["--perturbation", "gaussian", "--eps", "0.1"], "`--eps` belongs to --perturbation attack"),
        (["--sigma", "0.1"], "`--sigma` belongs to --perturbation gaussian"),
        (["--network", "ddpmpp-cifar10"], "`network` must be one for images"),
    ):
        with pytest.raises(ValueError, match=message):
            _run("flowpure", *words, "--out", "/nonexistent")
    assert not Path("/nonexistent").exists()
