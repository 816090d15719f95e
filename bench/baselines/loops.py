"""Plain PyTorch: the same table walked by autograd, keeping everything or checkpointing every step."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastpure.nets import Denoiser, frozen
from fastpure.schedule import StepTable


@contextmanager
def plain_modules() -> Iterator[None]:
    """Run the networks on torch's own operations and autograd, as anybody's nn.Module would."""
    with (
        patch.object(frozen, "saves_nothing_for", lambda *tensors: False),
        patch.object(frozen._Attention, "apply", F.scaled_dot_product_attention),
        patch.object(frozen._MeanDown, "apply", lambda x: F.avg_pool2d(x, 2)),
    ):
        yield


class LoopGradient:
    """Gradient of sum(x_out * v) by autograd through the loop; ``recompute`` checkpoints every step."""

    def __init__(self, denoiser: Denoiser, table: StepTable, recompute: bool) -> None:
        self.denoiser, self.table, self.recompute = denoiser.frozen(), table, recompute
        self.labels = [float(row.tau) for row in table.rows]
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(len(table), 1, *denoiser.image_shape, generator=generator)

    def step(self, x: Tensor, k: int) -> Tensor:
        row = self.table.rows[k]
        noise_pred = self.denoiser.network(x, torch.full((len(x),), self.labels[k]))
        return row.a * x + row.b * noise_pred + row.d * self.noise[k]

    def __call__(self, x: Tensor, v: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_(True)
        state = leaf
        with plain_modules():
            for k in range(len(self.table)):
                walk = (
                    functools.partial(checkpoint, self.step, use_reentrant=False)
                    if self.recompute
                    else self.step
                )
                state = walk(state, k)
            return torch.autograd.grad((state * v).sum(), leaf)[0]
