"""Losses that train a classifier: cross-entropy, and TRADES."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import mistake, one_of, positive, whole
from ..batches import Batch, Purpose
from .base import Augment, evaluation_mode, frozen_weights, kept_buffers


@final
@dataclass(frozen=True)
class ClassifierLoss:
    """Cross-entropy of the logits, with ``smoothing`` of the target towards the uniform distribution."""

    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(mistake("smoothing", "a number in [0, 1)", self.smoothing))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(self.augment(batch.images, batch.random))
        return F.cross_entropy(logits.float(), batch.labels, reduction="none", label_smoothing=self.smoothing)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "classifier", **asdict(self)}


@final
@dataclass(frozen=True)
class TradesLoss:
    """TRADES (Zhang et al. 2019, algorithm 1): ``CE(f(u), y) + beta KL(p(u) || p(u'))``, images in [0, 1].

    u' maximises the divergence within ``eps`` (Linf): it starts at u + 0.001 N(0, I) and takes ``n_iter`` sign
    steps, with the weights as constants.

    Fields:
        beta: weight of the divergence.
        eps, step_size: radius and step in [0, 1] units.
        n_iter: sign steps.
        inner_mode: batch normalisation and dropout while u' is sought: "eval" uses the running statistics (as
            published); "train" those of the batch, and leaves the running ones as they were.
        augment: applied before everything else.
    """

    beta: float = 6.0
    eps: float = 8 / 255
    step_size: float = 2 / 255
    n_iter: int = 10
    inner_mode: str = "eval"
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)

    def __post_init__(self) -> None:
        for name in ("beta", "eps", "step_size"):
            positive(name, getattr(self, name))
        whole("n_iter", self.n_iter, 1)
        one_of("inner_mode", self.inner_mode, ("eval", "train"))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        clean = self.augment(batch.images, batch.random)
        noise = batch.random.normal(Purpose.START, (clean.shape[1], clean.shape[2], clean.shape[3]))
        adversarial = self.perturb(model, clean, noise)
        logits, moved = model(clean).float(), model(adversarial).float()
        return F.cross_entropy(logits, batch.labels, reduction="none") + self.beta * divergence(logits, moved)

    def perturb(self, model: nn.Module, clean: Tensor, noise: Tensor) -> Tensor:
        """u' for images ``clean`` and a standard normal of the same shape; the model is left as it was."""
        low, high = (clean - self.eps).clamp_min(0.0), (clean + self.eps).clamp_max(1.0)
        point = torch.minimum(torch.maximum(clean + 0.001 * noise, low), high)
        mode = evaluation_mode if self.inner_mode == "eval" else kept_buffers
        with frozen_weights(model), mode(model):
            return self._ascend(model, clean, point, low, high)

    def _ascend(self, model: nn.Module, clean: Tensor, point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        with torch.no_grad():
            logits = model(clean).float()
        for _ in range(self.n_iter):
            point = point.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(divergence(logits, model(point).float()).sum(), point)
            moved = point.detach() + self.step_size * gradient.sign()
            point = torch.minimum(torch.maximum(moved, low), high)
        return point

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "trades", **asdict(self)}


def divergence(logits: Tensor, moved: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(moved)), ``[B]``."""
    log_p = F.log_softmax(logits, 1)
    return (log_p.exp() * (log_p - F.log_softmax(moved, 1))).sum(1)
