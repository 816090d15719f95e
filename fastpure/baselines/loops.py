"""Plain PyTorch: the same table walked by autograd, keeping everything or checkpointing every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..schedule import StepTable

Guide = Callable[[Tensor], Tensor]


def confidence_gradient(classifier: nn.Module, differentiable: bool) -> Guide:
    """x in [-1, 1] -> gradient of the log-confidence; with a graph of its own where ``differentiable``."""

    def guide(x: Tensor) -> Tensor:
        leaf = x if differentiable and x.requires_grad else x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = classifier((leaf + 1) / 2)
            confidence = -F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
            return torch.autograd.grad(confidence, leaf, create_graph=differentiable and x.requires_grad)[0]

    return guide


@final
class Cast(nn.Module):
    """A network that computes in ``dtype`` behind a float32 interface; ``channels_last`` is PyTorch's advice."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, channels_last: bool) -> None:
        super().__init__()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(dtype).to(memory_format=self.format)  # type: ignore[call-overload]
        self.dtype = dtype

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        return self.network(x.to(self.dtype, memory_format=self.format), *labels).to(x.dtype)


@final
class Loop:
    """A purification in a Python loop over a step table, and its gradient by autograd.

    Args:
        network: ``network(x, labels)``; its weights are frozen here.
        table: rows without register or clipping.
        noise: [K, B, C, H, W], one entry per row.
        guide: guidance gradient at a state, or None.
        recompute: checkpoint every step instead of keeping everything.
    """

    def __init__(
        self, network: nn.Module, table: StepTable, noise: Tensor, guide: Guide | None, recompute: bool
    ) -> None:
        self.network, self.table, self.noise = network.requires_grad_(False), table, noise
        self.guide, self.recompute = guide, recompute

    def _step(self, x: Tensor, k: int) -> Tensor:
        row = self.table.rows[k]
        noise_pred = self.network(x, torch.full((len(x),), row.tau, device=x.device))
        after = row.a * x + row.b * noise_pred + row.d * self.noise[k]
        return after if self.guide is None else after + row.c * self.guide(x)

    def purify(self, x: Tensor) -> Tensor:
        """Final state for ``x`` [B, C, H, W] in [-1, 1]."""
        for k in range(len(self.table)):
            keeps_all = not (self.recompute and torch.is_grad_enabled())
            x = self._step(x, k) if keeps_all else _checkpoint(self._step, x, k)
        return x

    def gradient(self, x: Tensor, v: Tensor) -> Tensor:
        """Gradient of sum(purify(x) v)."""
        leaf = x.detach().requires_grad_(True)
        return torch.autograd.grad((self.purify(leaf) * v).sum(), leaf)[0]


def _checkpoint(step: Callable[[Tensor, int], Tensor], x: Tensor, k: int) -> Tensor:
    kept: Any = checkpoint(step, x, k, use_reentrant=False)
    return kept
