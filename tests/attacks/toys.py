"""Small defences whose weaknesses are known, for tests that must come out one way."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.kernels import Domain
from fastpure.methods import Method
from fastpure.nets import Denoiser
from fastpure.nets.oracle import GaussianMixture

SHAPE = (1, 5, 5)
SIZE = 25


class Pixels(nn.Module):
    """Smooth classifier of ``classes`` classes, computed image by image: bitwise independent of the batch."""

    def __init__(self, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(classes, SIZE, generator=generator))
        self.training = False

    def forward(self, u: Tensor) -> Tensor:
        v = torch.tanh(3.0 * (u - 0.5)).flatten(1)
        return torch.stack([(v * row).sum(1) for row in self.weight], 1)


class Scaled(nn.Module):
    """Denoiser that predicts ``factor`` times the state; factor 0 leaves pure noise steps."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))
        self.training = False

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.factor * x


def scaling_defense(classifier: nn.Module, factor: float, t: float = 0.1, seed: int = 0) -> fp.Defense:
    """One reverse step x' = a x + b factor x + d z in front of ``classifier``."""
    denoiser = Denoiser.from_module(Scaled(factor), image_shape=SHAPE)
    method = fp.methods.coup_unguided(t=t, dt=t, clip_output=False)
    return fp.Defense(fp.Purifier(denoiser, method, seed=seed), classifier)


def mixture_defense(classifier: nn.Module, method: Method | None = None) -> fp.Defense:
    """The exact denoiser of a mixture of two Gaussians."""
    generator = torch.Generator().manual_seed(1)
    means = torch.rand(2, SIZE, generator=generator) * 1.6 - 0.8
    denoiser = Denoiser.from_module(GaussianMixture(means, 0.3), image_shape=SHAPE)
    return fp.Defense(fp.Purifier(denoiser, method or fp.methods.diffpure(t=0.1, dt=0.025)), classifier)


class Meter:
    """What purifiers were asked for on attack draws, by sample id, as attacks count it in gradients of ``defense``.

    The way there and back is one, the way there a half, times the network passes over those of ``defense``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, defense: fp.Defense) -> None:
        self.spent: dict[int, float] = defaultdict(float)
        own, forward = defense.purifier.network_calls, fp.Purifier.forward

        def counted(
            purifier: fp.Purifier, x: Tensor, sample_ids: Tensor, draw: Tensor, **rest: Any
        ) -> Tensor:
            if rest["domain"] is Domain.ATTACK:
                unit = 1.0 if x.requires_grad and torch.is_grad_enabled() else 0.5
                for name in sample_ids.tolist():
                    self.spent[name] += unit * purifier.network_calls / own
            return forward(purifier, x, sample_ids, draw, **rest)

        monkeypatch.setattr(fp.Purifier, "forward", counted)

    def of(self, ids: Tensor) -> Tensor:
        """Spent on each, float64 [n]."""
        return torch.tensor([self.spent[name] for name in ids.tolist()], dtype=torch.float64)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
