"""`TrainConfig`: everything about the optimisation that decides the result, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from ..errors import mistake, one_of, positive, whole
from ..shown import Settings


@final
@dataclass(frozen=True)
class TrainConfig(Settings):
    """One training run, besides network, loss and data.

    Fields:
        steps: optimiser steps.
        batch_size: images per step.
        seed: of the initial weights, batch order, augmentation, times, noise and dropout.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"`` (Nesterov momentum 0.9).
        lr: peak learning rate.
        weight_decay: decoupled for ``"adamw"``, added to the gradient otherwise; never on biases and norms.
        warmup: steps of linear rise of the learning rate.
        schedule: ``"cosine"`` (to zero at the last step) or ``"constant"``, after the warm-up.
        clip: largest gradient norm; None for no clipping.
        ema: decay of the averaged weights, in [0, 1); 0 keeps the last weights.
        accumulate: parts a batch is computed in, to save memory; the result is the same up to rounding
            (networks with batch normalisation see smaller batches, though).
        precision: ``"fp32"``, or ``"bf16"``: the network runs under autocast, weights and loss stay float32.
        log_every: steps per row of ``metrics.csv``.
        score_every: steps between scores on held-out data; a multiple of ``log_every``.

    Raises:
        TypeError, ValueError: a field out of range; the message names it.
    """

    steps: int
    batch_size: int = 128
    seed: int = 0
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "cosine"
    clip: float | None = 1.0
    ema: float = 0.999
    accumulate: int = 1
    precision: str = "fp32"
    log_every: int = 50
    score_every: int = 500

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        whole("batch_size", self.batch_size, 1)
        whole("seed", self.seed, 0, 2**32 - 1)
        one_of("optimizer", self.optimizer, ("adam", "adamw", "sgd"))
        positive("lr", self.lr)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(mistake("weight_decay", "a finite number >= 0", self.weight_decay))
        whole("warmup", self.warmup, 0)
        one_of("schedule", self.schedule, ("cosine", "constant"))
        if self.clip is not None:
            positive("clip", self.clip)
        if not 0 <= self.ema < 1:
            raise ValueError(mistake("ema", "a number in [0, 1)", self.ema))
        whole("accumulate", self.accumulate, 1, self.batch_size)
        one_of("precision", self.precision, ("fp32", "bf16"))
        whole("log_every", self.log_every, 1)
        if whole("score_every", self.score_every, 1) % self.log_every:
            raise ValueError(
                mistake("score_every", f"a multiple of log_every = {self.log_every}", self.score_every)
            )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the zero-based step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def ema_decay(config: TrainConfig, updates: int) -> float:
    """Decay of the averaged weights after ``updates`` updates: ``min(ema, (1 + k) / (10 + k))``.

    The warm-up keeps the initial weights from lingering in the average of a short run.
    """
    return min(config.ema, (1 + updates) / (10 + updates))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of ``config`` over the parameters that require gradients."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError(mistake("model", "a network with trainable parameters", "only frozen ones"))
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, config.lr, fused=True)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two nested configurations differ, as ``"train.lr: saved 0.001, now 0.01"``."""
    found: list[str] = []
    for key in [*saved, *(key for key in now if key not in saved)]:
        before, after = saved.get(key, "nothing"), now.get(key, "nothing")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: saved {before}, now {after}")
    return found
