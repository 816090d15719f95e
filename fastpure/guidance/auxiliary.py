"""AGDM-style guidance by an auxiliary network (after Lin et al., arXiv 2403.16067; no code was published).

What the paper's abstract and its public reviews establish: an adversarially trained auxiliary network, a latent
distance between the state and the adversarial input, a class term, one common scale. The formula below is this
library's reading of it, and results should be called AGDM-style.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classifiers.base import require_eval
from ..classifiers.features import frozen_features, probe_classes, require_features
from ..errors import mistake, one_of
from .base import GRADS, GuidanceStep, Objective


@dataclass(frozen=True)
class AuxiliaryLatent(Objective):
    """g(x) = gradient of log p_y(x) - eta mean_j (c_j(x) - c_j(x0))^2, with p and features c of ``network``.

    ``network`` takes [0, 1] images and offers ``features_and_logits`` (see ``classifiers.FeatureHead``).
    ``label`` "input": y is the most probable class of the purifier's input; "step": of the current state.
    ``features`` "clean": c of the input itself; "noised": of the input diffused to the state's noise level.
    """

    network: nn.Module
    eta: float = 1.0
    label: str = "input"
    features: str = "clean"
    grad: str = "exact"

    def __post_init__(self) -> None:
        require_features(self.network, "auxiliary")
        if isinstance(self.eta, bool) or not isinstance(self.eta, int | float):
            raise TypeError(mistake("eta", "a number >= 0", f"{type(self.eta).__name__} {self.eta!r}"))
        if not 0.0 <= self.eta < float("inf"):
            raise ValueError(mistake("eta", "a finite number >= 0", self.eta))
        one_of("label", self.label, ("input", "step"))
        one_of("features", self.features, ("clean", "noised"))
        one_of("guidance_grad", self.grad, GRADS)
        self.check()

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """(what the features are compared with, class of the input int64 [B]).

        The first is the input's features [B, F] for "clean", the input itself for "noised"; both carry gradients.
        """
        features, logits = self._evaluate(x0)
        return (features if self.features == "clean" else x0), logits.detach().argmax(1)

    def objective(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """See the class; one pass of the network (two with noised features)."""
        features, logits = self._evaluate(x)
        wanted = context[0]
        if self.features == "noised":
            wanted, _ = self._evaluate(step.alpha * wanted + step.sigma * step.noise())
        labels = context[1] if self.label == "input" else logits.detach().argmax(1)
        distance = (features - wanted).square().mean(1).sum()
        return -F.cross_entropy(logits, labels, reduction="sum") - self.eta * distance

    def networks(self) -> tuple[nn.Module, ...]:
        """The auxiliary network."""
        return (self.network,)

    def cast(self, dtype: torch.dtype) -> AuxiliaryLatent:
        """A copy whose network computes in ``dtype``; self where it does already."""
        if all(p.dtype == dtype for p in self.network.parameters()):
            return self
        return replace(self, network=copy.deepcopy(self.network).to(dtype))

    def check(self) -> None:
        """Raise ValueError if the network is in training mode."""
        require_eval(self.network, "auxiliary")

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """Raise ValueError if the network does not take images of this shape."""
        self.n_classes(image_shape)

    def n_classes(self, image_shape: tuple[int, int, int]) -> int:
        """How many classes the network tells apart."""
        return probe_classes(self.network, image_shape, "auxiliary")

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        features, logits = frozen_features(self.network, ((x + 1.0) * 0.5).to(dtype))
        return features.to(x.dtype), logits.to(x.dtype)
