"""The interface of a guidance: a vector field g(x; context) and its exact VJP; those of a scalar's gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import mistake
from ..schedule import StepTable

VJP = Callable[[Tensor], tuple["Tensor | None", tuple["Tensor | None", ...]]]
"""A vector-Jacobian product: the cotangents of x and of every context tensor for one of g; None stands for zero."""


def _no_denoiser(x: Tensor) -> Tensor:
    raise ValueError(mistake("step", "one that offers the denoiser (`noise_pred`)", "one without"))


@dataclass(frozen=True)
class GuidanceStep:
    """What a guidance may know of the step it is evaluated in.

    Attributes:
        k: the table's row.
        alpha, sigma: the state is ``alpha * x0 + sigma * noise``.
        noise: gives standard normal noise in the shape of the state from the stream reserved for guidance; the
            same call gives the same noise again.
        noise_pred: the denoiser at this step: predicted noise for a state [B, C, H, W], differentiable as often as
            its network is. Only a ``PredictionGuidance`` may ask it, and asks once.
    """

    k: int
    alpha: float
    sigma: float
    noise: Callable[[], Tensor]
    noise_pred: Callable[[Tensor], Tensor] = _no_denoiser


@dataclass(frozen=True)
class Opening:
    """What a guidance may use while it reads the purifier's input, before the first step.

    Attributes:
        clean_image: what the denoiser takes the clean image to be, given ``x0 + ratio * noise`` [B, C, H, W] and the
            ratio; differentiable once.
        noise: standard normal noise in the shape of the input, the guidance's of the first step that is no diffusion
            of the input: a guidance that uses it here has none left for that step.
    """

    clean_image: Callable[[Tensor, float], Tensor]
    noise: Callable[[], Tensor]


class Guidance(ABC):
    """A gradient added to the score. Implementations are frozen dataclasses and must be pure functions.

    States and images are ``[B, C, H, W]`` in [-1, 1] coordinates (x = 2 u - 1); sample i of the result depends on
    sample i of the inputs only. Whatever is read from the purifier's input goes through ``context``, because its
    gradient is part of the exact gradient of the purifier.

    Attributes:
        reads_step: whether the result depends on the numbers of the step (its noise aside). Where it does not, one
            recording of a CUDA graph serves all steps; otherwise every step is recorded for itself.
    """

    reads_step: ClassVar[bool] = True

    @abstractmethod
    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """Tensors read from the purifier's input ``x0`` [B, C, H, W]; computed once, differentiably where floating."""

    def read(self, x0: Tensor, opening: Opening) -> tuple[Tensor, ...]:
        """What ``context`` is; one that needs the denoiser or noise to read the input says so here instead."""
        return self.context(x0)

    @abstractmethod
    def gradient(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """g [B, C, H, W] at state ``x``, without a graph."""

    @abstractmethod
    def linearize(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> tuple[Tensor, VJP]:
        """g and its VJP at ``x``. The VJP may be called once."""

    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks inside, for device moves, checks and cost estimates."""

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> Guidance:
        """The same guidance with its networks in ``dtype``; self if nothing changes."""

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError if a network is in a state that makes the guidance wrong, such as training mode."""

    def passes(self, table: StepTable) -> int:
        """Passes through the denoiser that it makes besides one forward where the ``table``'s rows call it.

        Those of networks of its own count only where no row calls a denoiser; their way forward is in the table then.
        """
        return 0

    def asked_level(self) -> float:
        """Noise level, sigma / alpha, at which it asks the denoiser before the first row; 0 if it does not."""
        return 0.0

    def check_images(self, image_shape: tuple[int, int, int]) -> None:  # noqa: B027
        """Raise ValueError if a network inside does not take images of this shape (C, H, W)."""

    def n_classes(self, image_shape: tuple[int, int, int]) -> int | None:
        """How many classes the guidance tells apart, where that must agree with the defended classifier."""
        return None


def range_scale(v: Tensor) -> Tensor:
    """Power of two per sample [B, 1, ...] that brings the largest entry of ``v`` to about 1.

    A VJP is linear, so scaling its argument and its result is exact; float16 holds nothing below 6e-8, and
    the gradients of a confident classifier are smaller than that.
    """
    largest = v.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.exp2(-torch.floor(torch.log2(largest))).view(-1, *(1,) * (v.dim() - 1))


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
