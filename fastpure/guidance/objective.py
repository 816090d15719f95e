"""Guidances that are the gradient of a scalar objective: one implementation of gradient and VJP."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from .base import VJP, Guidance, GuidanceStep

GRADS = ("exact", "no_guide_path", "detached")
"""What an attacker differentiates: everything; not what was read from the input; nothing of the guidance."""


class Objective(Guidance):
    """g(x; context) = gradient with respect to x of ``objective``, which is summed over the batch.

    Implementations are frozen dataclasses with a field ``grad``, one of ``GRADS``. Context tensors that are
    floating get their cotangent unless ``grad`` says otherwise.
    """

    grad: str

    @abstractmethod
    def objective(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """The objective, a scalar; sample i enters through its own term only. Twice differentiable."""

    def gradient(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """See ``Guidance.gradient``; one forward and one backward pass of the objective."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(self.objective(leaf, context, step), leaf)[0]

    def linearize(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> tuple[Tensor, VJP]:
        """See ``Guidance.linearize``; the VJP is a double backward, by x and by the context at once."""
        silent: tuple[Tensor | None, ...] = (None,) * len(context)
        if self.grad == "detached":
            return self.gradient(x, context, step), lambda v: (None, silent)
        leaf = x.detach().requires_grad_(True)
        through = [t.is_floating_point() and self.grad == "exact" for t in context]
        read = tuple(t.detach().requires_grad_(wanted) for t, wanted in zip(context, through, strict=True))
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self.objective(leaf, read, step), leaf, create_graph=True)
        if not g.requires_grad:
            raise ValueError(
                "the guidance must be twice differentiable for guidance_grad='exact', but its gradient has no "
                "graph. Replace operations without second derivative (fused attention, detach) in its network or "
                "ask for guidance_grad='detached'"
            )

        def vjp(v: Tensor) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
            inputs = [leaf, *(t for t, wanted in zip(read, through, strict=True) if wanted)]
            parts = list(torch.autograd.grad(g, inputs, v, allow_unused=True))
            v_x = parts.pop(0)
            return v_x, tuple(parts.pop(0) if wanted else None for wanted in through)

        return g.detach(), vjp
