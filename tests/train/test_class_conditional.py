"""Class-conditional denoisers: the labels reach the network, some of them left out, and what is learnt classifies."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fastpure as fp
from fastpure.cli.train import app
from fastpure.data import Dataset, load_dataset
from fastpure.train import (
    DENOISER_RECIPES,
    Batch,
    DenoiserLoss,
    DiscreteDenoiserLoss,
    EdmDenoiserLoss,
    FlowLoss,
    StepRandom,
    TrainConfig,
    Trainer,
    score_denoiser,
)
from fastpure.train.networks import new_denoiser

LOSSES = {
    "vp": (DenoiserLoss, "continuous"),
    "discrete": (DiscreteDenoiserLoss, "index"),
    "edm": (EdmDenoiserLoss, "sigma"),
    "flow": (FlowLoss, "continuous"),
}


class Ear(nn.Module):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.heard: list[Tensor] = []

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        self.heard.append(classes)
        return self.weight * x


def batch(n: int = 400) -> Batch:
    random = StepRandom(0, 3, 0, n, torch.device("cpu"))
    return Batch(torch.rand(n, 1, 2, 2), torch.arange(n) % 5, random)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_tells_the_labels_and_leaves_some_out(kind):
    make, time_input = LOSSES[kind]
    prediction = make().levels.prediction if kind != "vp" else "eps"
    settings = {"prediction": prediction, "time_input": time_input, "image_shape": (1, 2, 2)}
    settings |= {"schedule": "flow"} if kind == "flow" else {}
    told = fp.Denoiser.from_module(Ear(), **settings, n_classes=5)
    make()(told, batch())
    assert torch.equal(told.network.heard[0], batch().labels)
    free = fp.Denoiser.from_module(Ear(), **settings, n_classes=5, null_class=True)
    make(label_dropout=0.25)(free, batch())
    classes = free.network.heard[0]
    left_out = classes == -1
    assert abs(left_out.float().mean().item() - 0.25) < 0.07
    assert torch.equal(classes[~left_out], batch().labels[~left_out])
    plain = fp.Denoiser.from_module(Ear(), **settings)
    make()(plain, batch())
    assert plain.network.heard == [None]
    with pytest.raises(ValueError, match="`classes` must be in"):
        make(label_dropout=0.25)(told, batch())
    assert "label_dropout" not in make().to_dict(), "runs that are older than the setting go on"
    assert make(label_dropout=0.25).to_dict()["label_dropout"] == 0.25
    with pytest.raises(ValueError, match="`label_dropout`"):
        make(label_dropout=1.0)


def test_recipes_make_conditional_networks():
    recipe = DENOISER_RECIPES["digits"]
    assert new_denoiser(recipe, 10).n_classes == 0
    for schedule in LOSSES:
        told = replace(recipe.with_schedule(schedule), class_conditional=True)
        made = new_denoiser(told, 10)
        assert (made.n_classes, made.null_class, made.time_input) == (10, False, LOSSES[schedule][1])
    dropping = replace(recipe, loss=replace(recipe.loss, label_dropout=0.1))
    assert dropping.with_schedule("edm").loss.label_dropout == 0.1
    assert new_denoiser(replace(dropping, class_conditional=True), 10).null_class
    with pytest.raises(ValueError, match="`label_dropout` must be 0 without class_conditional"):
        new_denoiser(dropping, 10)


def test_what_is_learnt_classifies():
    """Images of two stripes, of which the class says the direction; 80 steps of a tiny network."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(256) % 2
    stripes = torch.linspace(0.1, 0.9, 4).expand(4, 4)
    images = torch.where(labels.view(-1, 1, 1).bool(), stripes, stripes.T)[:, None]
    images = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    data = Dataset(images, labels, torch.arange(256), ("down", "right"), "stripes", "toy")
    config = {"architecture": "ddpmpp", "image_size": 4, "channels": 1, "nf": 8, "ch_mult": (1,), "n_blocks": 1,
              "attn_resolutions": (), "dropout": 0.0, "classes": 2}  # fmt: skip
    wrapped = {"architecture": "edm", "network": config}
    model = fp.Denoiser.from_config(wrapped, init_scale=0.0)
    loss = EdmDenoiserLoss(fp.train.EdmLevels(prediction="eps"))
    trainer = Trainer(model, loss, data, TrainConfig(steps=80, batch_size=48, lr=1e-2, ema=0.9))
    losses = [float(trainer.advance()) for _ in range(80)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    classifier = fp.DiffusionClassifier(trainer.average, 16, (0.1, 5.0))
    with torch.no_grad():
        right = classifier(images[:64], draw=0).argmax(1) == labels[:64]
        untrained = fp.DiffusionClassifier(
            fp.Denoiser.from_config(wrapped, init_scale=0.0).eval(), 16, (0.1, 5.0)
        )
        before = untrained(images[:64], draw=0).argmax(1) == labels[:64]
    assert right.float().mean() > 0.95
    assert before.float().mean() < 0.8


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastpure.train.runs.SCORED_IMAGES", 16)
    out = tmp_path / "run"
    arguments = ["denoiser", "--data", "digits", "--out", str(out), "--steps", "2", "--batch-size", "8"]
    result = CliRunner().invoke(
        app, [*arguments, "--class-conditional", "--label-dropout", "0.2"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    loaded = fp.load_denoiser(out / "denoiser.safetensors")
    assert (loaded.n_classes, loaded.null_class) == (10, True)
    (score,) = score_denoiser(loaded, load_dataset("digits", "test").subset(16), (0.1,))
    assert math.isfinite(score.noise_mse)
    assert fp.DiffusionClassifier(loaded, 2, (0.1, 1.0))(load_dataset("digits", "test").images[:2]).shape == (
        2,
        10,
    )
