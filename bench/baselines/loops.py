"""Plain PyTorch: the same table walked by autograd, keeping everything or checkpointing every step."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastpure.schedule import StepTable


class LoopGradient:
    """Gradient of sum(x_out * v) by autograd through the loop; ``recompute`` checkpoints every step.

    ``network(x, labels)`` has frozen weights; ``x`` and ``v`` are [B, C, H, W] in [-1, 1] units.
    """

    def __init__(
        self, network: nn.Module, table: StepTable, shape: tuple[int, int, int], recompute: bool
    ) -> None:
        self.network, self.table = network.requires_grad_(False), table
        generator = torch.Generator().manual_seed(0)
        device = next(network.parameters()).device
        self.noise = torch.randn(len(table), 1, *shape, generator=generator).to(device)
        step = self._step
        self.advance = functools.partial(checkpoint, step, use_reentrant=False) if recompute else step

    def _step(self, x: Tensor, k: int) -> Tensor:
        row = self.table.rows[k]
        noise_pred = self.network(x, torch.full((len(x),), row.tau, device=x.device))
        return row.a * x + row.b * noise_pred + row.d * self.noise[k]

    def __call__(self, x: Tensor, v: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_(True)
        state = leaf
        for k in range(len(self.table)):
            state = self.advance(state, k)
        return torch.autograd.grad((state * v).sum(), leaf)[0]
