"""Energies by persistent chains: the loss written out, a Gaussian's fitted variance, resumed chains, the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fastpure as fp
from fastpure.cli.train import app
from fastpure.data import Dataset
from fastpure.errors import ResumeError
from fastpure.nets import EnergyConfig, EnergyNet
from fastpure.train import Batch, EnergyLoss, EnergyWithChains, StepRandom, TrainConfig, Trainer
from fastpure.train.batches import Purpose
from tests.train.helpers import few_digits

SHAPE = (1, 8, 8)


def small(n_chains=32):
    network = EnergyNet(EnergyConfig(SHAPE, (3, 4))).initialise(0)
    with torch.no_grad():
        network.last.weight.mul_(20)
    return EnergyWithChains(network, n_chains)


def batch(step=5, rows=6):
    data = few_digits(rows)
    return Batch(data.images, data.labels, StepRandom(0, step, 0, rows, torch.device("cpu")))


def test_the_loss_is_its_formula_and_the_chains_go_on():
    model, given = small().train(), batch()
    loss = EnergyLoss(n_iter=2, tau=0.3, restart=0.5, restart_noise=0.4, smooth=0.1, decay=0.01)
    before, random = model.chains.clone(), given.random
    images = 2 * given.images - 1 + 0.1 * random.normal(Purpose.NOISE, SHAPE)
    chosen = [(i + 997 * 5) % 32 for i in range(6)]
    anew = random.uniform(Purpose.TIME)[:, 0] < 0.5
    assert 0 < int(anew.sum()) < 6
    x = torch.where(
        anew.view(-1, 1, 1, 1), images + 0.4 * random.normal(Purpose.START, SHAPE), before[chosen]
    )
    for i in range(2):
        x = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(model.network(x).sum(), x)
        x = x - 0.045 * g + 0.3 * random.normal(Purpose.INNER_NOISE, SHAPE, repeat=i)
    x = x.detach()
    low, high = model.network(images), model.network(x)
    found = loss(model, given)
    assert torch.allclose(found, low - high + 0.01 * (low**2 + high**2), atol=1e-4)
    assert torch.allclose(model.chains[chosen], x, atol=1e-5)
    others = [i for i in range(32) if i not in chosen]
    assert torch.equal(model.chains[others], before[others])
    # Nothing of the sampler is differentiated: the samples are constants to the weights.
    parameters = list(model.network.parameters())
    ours = torch.autograd.grad(found.sum(), parameters)
    theirs = torch.autograd.grad((low - high + 0.01 * (low**2 + high**2)).sum(), parameters)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(ours, theirs, strict=True))


def test_the_score_term_is_its_formula():
    model, given = small().eval(), batch()
    settings = {"n_iter": 1, "smooth": 0.2, "decay": 0.0}
    noise = given.random.normal(Purpose.NOISE, SHAPE)
    x = (2 * given.images - 1 + 0.2 * noise).requires_grad_(True)
    (g,) = torch.autograd.grad(model.network(x).sum(), x, create_graph=True)
    extra = 3.0 * (0.2 * g - noise).square().mean((1, 2, 3))
    plain, scored = (EnergyLoss(**settings, score=weight)(model, given) for weight in (0.0, 3.0))
    assert torch.allclose(scored - plain, extra, atol=1e-4)
    parameters = list(model.network.parameters())[:-1]  # a constant added to U has no gradient
    wanted = torch.autograd.grad(extra.sum(), parameters, retain_graph=True, allow_unused=True)
    found = torch.autograd.grad((scored - plain).sum(), parameters)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(found, wanted, strict=True))


def test_scoring_leaves_the_chains_alone():
    model = small().eval()
    before = model.chains.clone()
    EnergyLoss(n_iter=1)(model, batch())
    assert torch.equal(model.chains, before)


class Precision(nn.Module):
    """U = k |x|^2 / 2 with k to be learned."""

    config = SimpleNamespace(image_shape=(1, 2, 2))

    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return 0.5 * self.log.exp() * x.square().flatten(1).sum(1)


def test_a_gaussian_gets_its_variance():
    """Maximum likelihood of N(0, 1 / k): the chains' own variance must become the images'."""
    generator = torch.Generator().manual_seed(0)
    spread, smooth, tau = 0.2, 0.1, 0.1
    pixels = (0.5 + 0.5 * spread * torch.randn(512, 1, 2, 2, generator=generator)).clamp(0, 1)
    labels = torch.zeros(512, dtype=torch.int64)
    data = Dataset(pixels, labels, torch.arange(512), ("one",), "gaussian", "train")
    model = EnergyWithChains(Precision(), 256)
    loss = EnergyLoss(n_iter=5, tau=tau, restart=0.0, smooth=smooth, decay=0.0)
    config = TrainConfig(steps=150, batch_size=128, lr=0.1, warmup=1, ema=0.9, clip=None)
    trainer = Trainer(model, loss, data, config)
    for _ in range(config.steps):
        trainer.advance()
    precision = float(trainer.average.network.log.exp())
    # A Langevin step of finite size has the stationary variance tau^2 / (1 - r^2), r = 1 - tau^2 k / 2.
    r = 1 - tau**2 * precision / 2
    wanted = float((2 * pixels - 1).square().mean()) + smooth**2
    assert tau**2 / (1 - r**2) == pytest.approx(wanted, rel=0.15)


def test_a_resumed_run_has_the_same_chains():
    def trainer():
        config = TrainConfig(steps=6, batch_size=8, lr=1e-2)
        return Trainer(small(), EnergyLoss(n_iter=2, tau=0.1), few_digits(), config)

    unbroken, first = trainer(), trainer()
    for _ in range(6):
        unbroken.advance()
    for _ in range(3):
        first.advance()
    saved = first.state()
    second = trainer()
    second.restore(saved)
    for _ in range(3):
        second.advance()
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_the_command_trains_exports_and_continues(tmp_path: Path):
    arguments = [
        "energy",
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "3",
        "--batch-size",
        "8",
        "--n-iter",
        "2",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "error of the noise that the gradient predicts" in result.output
    energy = fp.load_energy(tmp_path / "run" / "energy.safetensors")
    assert energy(torch.zeros(2, *SHAPE)).shape == (2,)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["held_out"]["images"] == 500
    assert "was finished before" in CliRunner().invoke(app, arguments, catch_exceptions=False).output
    with pytest.raises(ResumeError, match=r"loss\.tau"):
        CliRunner().invoke(app, [*arguments, "--tau", "0.5"], catch_exceptions=False)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`n_chains` must be a power of two, got 12"):
        small(12)
    with pytest.raises(ValueError, match="`batch_size` must be at most the number of chains, 4, got 6"):
        EnergyLoss(n_iter=1)(small(4), batch())
    with pytest.raises(TypeError, match="`model` must be an EnergyWithChains"):
        EnergyLoss(n_iter=1)(nn.Identity(), batch())
    with pytest.raises(ValueError, match="`restart` must be"):
        EnergyLoss(restart=-1.0)
