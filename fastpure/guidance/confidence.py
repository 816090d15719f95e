"""Classifier confidence, the guidance of COUP (Zhang et al., arXiv 2408.05900, eq. 9)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classifiers.base import call_frozen, require_eval
from ..errors import one_of
from .base import VJP, Guidance, GuidanceStep


@dataclass(frozen=True)
class ClassifierConfidence(Guidance):
    """g(x) = gradient with respect to x of log p_y(x), p = softmax(classifier((x + 1) / 2)).

    ``label`` chooses y: "step" is the most probable class at the current state, anew at every step (what the
    published code does); "input" is the most probable class of the purifier's input, kept throughout. The
    arg-max itself has no gradient.

    ``grad`` chooses the derivative seen by an attacker: "exact" includes the Hessian of log p, "detached" treats
    g as a constant, which is how the published attack differentiates and which is weaker.
    """

    classifier: nn.Module
    label: str = "step"
    grad: str = "exact"
    reads_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.classifier, nn.Module):
            raise TypeError(
                f"`classifier` must be an nn.Module mapping [0, 1] images to logits, got "
                f"{type(self.classifier).__name__}"
            )
        one_of("label", self.label, ("step", "input"))
        one_of("guidance_grad", self.grad, ("exact", "detached"))
        self.check()

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """() for label "step"; for label "input" the int64 class of each image [B]."""
        if self.label == "step":
            return ()
        with torch.no_grad():
            return (self._logits(x0).argmax(1),)

    def gradient(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """See ``Guidance.gradient``; one forward and one backward pass of the classifier."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(self._log_confidence(leaf, context), leaf)[0]

    def linearize(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> tuple[Tensor, VJP]:
        """See ``Guidance.linearize``; the VJP is a Hessian-vector product by double backward."""
        silent: tuple[Tensor | None, ...] = (None,) * len(context)
        if self.grad == "detached":
            return self.gradient(x, context, step), lambda v: (None, silent)
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self._log_confidence(leaf, context), leaf, create_graph=True)
        if not g.requires_grad:
            raise ValueError(
                "`classifier` must be twice differentiable for guidance_grad='exact', but its gradient has no "
                "graph. Replace operations without second derivative (fused attention, detach) or ask for "
                "guidance_grad='detached'"
            )

        def vjp(v: Tensor) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
            return torch.autograd.grad(g, leaf, v)[0], silent

        return g.detach(), vjp

    def networks(self) -> tuple[nn.Module, ...]:
        """The classifier."""
        return (self.classifier,)

    def cast(self, dtype: torch.dtype) -> ClassifierConfidence:
        """A copy whose classifier computes in ``dtype``; self where it does already."""
        parameters = list(self.classifier.parameters())
        if all(p.dtype == dtype for p in parameters):
            return self
        return replace(self, classifier=copy.deepcopy(self.classifier).to(dtype))

    def check(self) -> None:
        """Raise ValueError if the classifier is in training mode."""
        require_eval(self.classifier, "classifier")

    def _logits(self, x: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.classifier.parameters()), x.dtype)
        return call_frozen(self.classifier, ((x + 1.0) * 0.5).to(dtype)).to(x.dtype)

    def _log_confidence(self, x: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        # Summed over the batch: samples do not interact in evaluation mode, so one backward serves them all.
        logits = self._logits(x)
        labels = context[0] if context else logits.detach().argmax(1)
        return -F.cross_entropy(logits, labels, reduction="sum")
