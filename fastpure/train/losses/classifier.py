"""Losses that train a classifier: cross-entropy, and TRADES, also as AGDM trains its auxiliary network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...attacks.budget import Budget
from ...errors import mistake, one_of, positive, whole
from ...guidance.auxiliary import DISTANCES
from ...norms import norm_called
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
    """TRADES (Zhang et al. 2019, algorithm 1): ``CE(f(u), y) + beta D(f(u), f(u'))``, images in [0, 1].

    u' maximises D within ``eps``: it starts at u + 0.001 N(0, I) and takes ``n_iter`` steps of ``step_size``, by sign
    (Linf) or along the gradient (L2), with the weights as constants. With D the divergence this is TRADES; with the
    distance that guides (Lin et al., arXiv 2403.16067) it is how AGDM's auxiliary network is trained.

    Fields:
        beta: weight of D. An "mse" has another scale than a "kl", and no published weight.
        eps, step_size: radius and step in [0, 1] units.
        n_iter: steps.
        distance: "kl", KL(softmax(f(u)) || softmax(f(u'))), or "mse", the mean squared difference of the logits.
        norm: of the radius, "Linf" or "L2" (over all pixels and channels of an image).
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
    distance: str = "kl"
    norm: str = "Linf"

    def __post_init__(self) -> None:
        one_of("distance", self.distance, DISTANCES)
        object.__setattr__(self, "norm", norm_called("norm", self.norm, ("Linf", "L2")))
        for name in ("beta", "eps", "step_size"):
            positive(name, getattr(self, name))
        Budget(self.norm, self.eps)
        whole("n_iter", self.n_iter, 1)
        one_of("inner_mode", self.inner_mode, ("eval", "train"))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        clean = self.augment(batch.images, batch.random)
        noise = batch.random.normal(Purpose.START, (clean.shape[1], clean.shape[2], clean.shape[3]))
        adversarial = self.perturb(model, clean, noise)
        logits, moved = model(clean).float(), model(adversarial).float()
        apart = DISTANCES[self.distance](logits, moved)
        return F.cross_entropy(logits, batch.labels, reduction="none") + self.beta * apart

    def perturb(self, model: nn.Module, clean: Tensor, noise: Tensor) -> Tensor:
        """u' for images ``clean`` and a standard normal of the same shape; the model is left as it was."""
        point = self._held(clean + 0.001 * noise, clean)
        mode = evaluation_mode if self.inner_mode == "eval" else kept_buffers
        with frozen_weights(model), mode(model):
            return self._ascend(model, clean, point)

    def _held(self, point: Tensor, clean: Tensor) -> Tensor:
        """The nearest image of the ball around ``clean`` (nearest pixel by pixel for Linf)."""
        if self.norm == "L2":
            return Budget("L2", self.eps).project(point, clean)
        low, high = (clean - self.eps).clamp_min(0.0), (clean + self.eps).clamp_max(1.0)
        return torch.minimum(torch.maximum(point, low), high)

    def _ascend(self, model: nn.Module, clean: Tensor, point: Tensor) -> Tensor:
        budget, distance = Budget(self.norm, self.eps), DISTANCES[self.distance]
        with torch.no_grad():
            logits = model(clean).float()
        for _ in range(self.n_iter):
            point = point.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(distance(logits, model(point).float()).sum(), point)
            point = self._held(budget.ascend(point.detach(), gradient, self.step_size), clean)
        return point

    def to_dict(self) -> dict[str, Any]:
        # What came later stays out where it is as before, so that older runs can be continued.
        later = {"distance": "kl", "norm": "Linf"}
        fields = {name: value for name, value in asdict(self).items() if later.get(name) != value}
        return {"kind": "trades", **fields}
