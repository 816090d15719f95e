"""Guidances that read what the denoiser answers: what stands between the network and the row.

The row adds c g to b e, e being the predicted noise. A guidance that is told e, or the clean image x0hat =
(x - sigma e) / alpha that it implies, is one of two kinds:

- g is the gradient of an objective of x0hat (``CleanPull``): J^T w with J the derivative of x0hat by the state and w
  that of the objective by x0hat. J is needed to purify at all, its derivative to attack.
- g is the change of x0hat to something else, P(x0hat) - x0hat (``Correction``). Where a row is told to use the
  corrected image instead of the predicted one, that is one more additive term, with the coefficient x0hat has there.

Both share one evaluation of the denoiser with the row, and both answers are pulled back through it at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..schedule import StepTable
from .base import VJP, Guidance, GuidanceStep, range_scale

JointVJP = Callable[[Tensor, Tensor], tuple[Tensor, tuple["Tensor | None", ...]]]
"""Cotangents of x and of every context tensor for (one of the predicted noise, one of g); None stands for zero."""


class PredictionGuidance(Guidance):
    """A guidance g(x, e(x); context), e the denoiser's answer at the step.

    Implementations are frozen dataclasses with a field ``grad``, one of ``GRADS``: "no_guide_path" leaves out what
    was read from the purifier's input, "detached" takes g to be a constant.
    """

    grad: str

    @abstractmethod
    def field(
        self, x: Tensor, noise_pred: Tensor, context: tuple[Tensor, ...], step: GuidanceStep, record: bool
    ) -> Tensor:
        """g [B, C, H, W]. ``noise_pred`` has a graph that leads to ``x`` if ``needs_graph`` or ``record``.

        ``record``: g is going to be differentiated, by x, through ``noise_pred``, and by the context.
        """

    @property
    @abstractmethod
    def needs_graph(self) -> bool:
        """Whether g itself takes a derivative of the denoiser."""

    def evaluate(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> tuple[Tensor, Tensor]:
        """(predicted noise, g) at state ``x``, without a graph; one call of the denoiser."""
        leaf = x.detach().requires_grad_(self.needs_graph)
        with torch.set_grad_enabled(self.needs_graph):
            noise_pred = step.noise_pred(leaf)
            return noise_pred.detach(), self.field(leaf, noise_pred, context, step, False).detach()

    def linearize_both(
        self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep
    ) -> tuple[Tensor, Tensor, JointVJP]:
        """(predicted noise, g, the VJP of both) at ``x``. The VJP may be called once."""
        silent: tuple[Tensor | None, ...] = (None,) * len(context)
        exact = self.grad != "detached"
        through = [t.is_floating_point() and exact and self.grad != "no_guide_path" for t in context]
        read = tuple(t.detach().requires_grad_(wanted) for t, wanted in zip(context, through, strict=True))
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            noise_pred = step.noise_pred(leaf)
            g = self.field(leaf, noise_pred, read, step, exact)
        if not exact:

            def first_only(v: Tensor, v_guidance: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
                return torch.autograd.grad(noise_pred, leaf, v)[0], silent

            return noise_pred.detach(), g.detach(), first_only
        if not g.requires_grad:
            raise ValueError(
                "the denoiser must be twice differentiable for guidance_grad='exact', but the guidance has no graph "
                "through it. Replace operations without second derivative (fused attention, detach) in its network "
                "or ask for guidance_grad='detached'"
            )

        def vjp(v: Tensor, v_guidance: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            inputs = [leaf, *(t for t, wanted in zip(read, through, strict=True) if wanted)]
            found = torch.autograd.grad([noise_pred, g], inputs, [v, v_guidance], allow_unused=True)
            parts = list(found)
            v_x = parts.pop(0)
            assert v_x is not None  # the denoiser's answer depends on the state
            return v_x, tuple(parts.pop(0) if wanted else None for wanted in through)

        return noise_pred.detach(), g.detach(), vjp

    def gradient(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """See ``Guidance.gradient``; one call of the denoiser."""
        return self.evaluate(x, context, step)[1]

    def linearize(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> tuple[Tensor, VJP]:
        """See ``Guidance.linearize``."""
        if self.grad == "detached":
            return self.gradient(x, context, step), lambda v: (None, (None,) * len(context))
        _, g, both = self.linearize_both(x, context, step)
        return g, lambda v: both(torch.zeros_like(v), v)

    def networks(self) -> tuple[nn.Module, ...]:
        """None besides the denoiser."""
        return ()

    def cast(self, dtype: torch.dtype) -> Guidance:
        """Itself: it computes in the dtype of the state."""
        return self

    def check(self) -> None:
        """Nothing that could be in a wrong state."""


def predicted_image(x: Tensor, noise_pred: Tensor, step: GuidanceStep) -> Tensor:
    """x0hat = (x - sigma e) / alpha."""
    return (x - step.sigma * noise_pred) / step.alpha


class CleanPull(PredictionGuidance):
    """g = J^T w: the gradient by the state of an objective of x0hat, through the denoiser."""

    @property
    def needs_graph(self) -> bool:
        """Always."""
        return True

    @abstractmethod
    def pull(self, clean: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """w [B, C, H, W]: the objective's gradient by ``clean``, in differentiable operations."""

    def passes(self, table: StepTable) -> int:
        """The way back of every guided row."""
        return sum(row.calls_guidance for row in table.rows)

    def field(
        self, x: Tensor, noise_pred: Tensor, context: tuple[Tensor, ...], step: GuidanceStep, record: bool
    ) -> Tensor:
        """See ``PredictionGuidance.field``; a backward pass of the denoiser, with a graph if ``record``."""
        clean = predicted_image(x, noise_pred, step)
        w = self.pull(clean, context, step)
        if not record:
            w = w.detach()
        scale = range_scale(w.detach())
        (g,) = torch.autograd.grad(clean, x, w * scale, retain_graph=True, create_graph=record)
        return g / scale


class Correction(PredictionGuidance):
    """g = P(x0hat) - x0hat, for tables whose rows weigh it as they weigh x0hat (``StepTable.corrected``).

    ``clip_x0``, a field too, says that the rows clamp x0hat to [-1, 1]; then so does this, first.
    """

    clip_x0: bool

    @property
    def needs_graph(self) -> bool:
        """Never: the image is looked at, not differentiated."""
        return False

    @abstractmethod
    def corrected(self, clean: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """P(``clean``) [B, C, H, W], in differentiable operations."""

    def field(
        self, x: Tensor, noise_pred: Tensor, context: tuple[Tensor, ...], step: GuidanceStep, record: bool
    ) -> Tensor:
        """See ``PredictionGuidance.field``."""
        clean = predicted_image(x, noise_pred, step)
        clean = clean.clamp(-1.0, 1.0) if self.clip_x0 else clean
        return self.corrected(clean, context, step) - clean
