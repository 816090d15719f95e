"""A small data set and a small network with batch normalisation and dropout: all the state a run can have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastpure.data import Dataset, load_dataset
from fastpure.train import Batch, StepRandom, TrainConfig


class SmallClassifier(nn.Module):
    """Digits to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SmallDenoiser(nn.Module):
    """Noise prediction from the image and the label, without hidden structure."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 16, 3, 1, 1)
        self.second = nn.Conv2d(16, 1, 3, 1, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        plane = (labels / 999).view(-1, 1, 1, 1).expand_as(x)
        return self.second(torch.relu(self.first(torch.cat([x, plane], 1))))


def fresh(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network whose initial weights depend on ``seed`` only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def few_digits(count: int = 100) -> Dataset:
    """The first training digits."""
    return load_dataset("digits", "train").select(range(count))


def quick(**change: object) -> TrainConfig:
    """A run of a few dozen steps."""
    base = {
        "steps": 24,
        "batch_size": 16,
        "lr": 1e-2,
        "warmup": 4,
        "log_every": 5,
        "score_every": 10,
        "ema": 0.9,
    }
    return TrainConfig(**{**base, **change})  # type: ignore[arg-type]


class RoughDenoiser(SmallDenoiser):
    """The same with weights large enough that its answer, and so its gradient, is not close to zero."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(2.0)


def batch_of(count: int, step: int = 7, seed: int = 5) -> Batch:
    """The first digits with the randomness of one training step."""
    digits = few_digits(count)
    return Batch(digits.images, digits.labels, StepRandom(seed, step, 0, count, torch.device("cpu")))


def guide() -> nn.Module:
    """A small classifier in evaluation mode."""
    return fresh(SmallClassifier, 3).eval()
