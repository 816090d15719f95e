"""AGDM-style guidance by an auxiliary network (after Lin et al., arXiv 2403.16067; no code was published).

A public summary of the paper prints p(x' | x_t) ~ exp(-D(c(x'), c(x_t))) and p(y | x_t) = softmax(c(x_t)) with the same
logits c for both and one common scale, for a network trained as TRADES is with the same D. Which class y is and all
constants are this library's choice, and results should be called AGDM-style.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classifiers.base import call_frozen, require_eval
from ..classifiers.features import frozen_features, probe_classes, require_features
from ..errors import mistake, one_of
from .base import GRADS, GuidanceStep, Objective

LATENTS = ("logits", "penultimate")
"""What of the network is compared: its logits, or the features they are made of."""


def mean_square(wanted: Tensor, found: Tensor) -> Tensor:
    """Mean squared difference of latents [B, F]; [B]."""
    return (wanted - found).square().mean(1)


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(softmax(wanted) || softmax(found)) of logits [B, classes]; [B]."""
    log_p = F.log_softmax(wanted, 1)
    return (log_p.exp() * (log_p - F.log_softmax(found, 1))).sum(1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mean_square, "kl": divergence}
"""Distances of latents, by name: the guidance's and those that its network is trained with."""


@dataclass(frozen=True)
class AuxiliaryLatent(Objective):
    """g(x) = gradient of log p_y(x) - eta D(c(x0), c(x)), with p and latents c of ``network`` and x0 the input.

    ``network`` takes [0, 1] images. ``latent`` "logits": c are its logits, of which p is made; "penultimate": its
    features, for which it offers ``features_and_logits`` (see ``classifiers.FeatureHead``). ``distance`` "mse": mean of
    (c_j(x0) - c_j(x))^2; "kl": KL(softmax(c(x0)) || softmax(c(x))), of logits only. ``label`` "input": y is the most
    probable class of the purifier's input; "step": of the current state. ``features`` "clean": c of the input itself;
    "noised": of the input diffused to the state's noise level.
    """

    network: nn.Module
    eta: float = 1.0
    label: str = "input"
    features: str = "clean"
    grad: str = "exact"
    latent: str = field(default="penultimate", metadata={"later": True})
    distance: str = field(default="mse", metadata={"later": True})

    def __post_init__(self) -> None:
        one_of("latent", self.latent, LATENTS)
        one_of("distance", self.distance, DISTANCES)
        if self.latent == "penultimate":
            require_features(self.network, "auxiliary")
        elif not isinstance(self.network, nn.Module):
            raise TypeError(mistake("auxiliary", "a torch.nn.Module", type(self.network).__name__))
        if (self.latent, self.distance) == ("penultimate", "kl"):
            remedy = "Only logits have a softmax to compare"
            raise ValueError(mistake("distance", "'mse' for latent='penultimate'", "'kl'", remedy))
        if isinstance(self.eta, bool) or not isinstance(self.eta, int | float):
            raise TypeError(mistake("eta", "a number >= 0", f"{type(self.eta).__name__} {self.eta!r}"))
        if not 0.0 <= self.eta < float("inf"):
            raise ValueError(mistake("eta", "a finite number >= 0", self.eta))
        one_of("label", self.label, ("input", "step"))
        one_of("features", self.features, ("clean", "noised"))
        one_of("guidance_grad", self.grad, GRADS)
        self.check()

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """(what the latents are compared with, class of the input int64 [B]).

        The first is the input's latents [B, F] for "clean", the input itself for "noised"; both carry gradients.
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
        distance = DISTANCES[self.distance](wanted, features).sum()
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
        u = ((x + 1.0) * 0.5).to(dtype)
        if self.latent == "logits":
            logits = call_frozen(self.network, u).to(x.dtype)
            return logits, logits
        features, logits = frozen_features(self.network, u)
        return features.to(x.dtype), logits.to(x.dtype)
