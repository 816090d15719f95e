"""Random weights for networks that are to be trained, or measured without a checkpoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .layers import Conv, Dense, Norm, PointDense, Projection, Table


def fill(module: nn.Module, scale: float, generator: torch.Generator) -> None:
    """Fill a module's own weights: uniform with variance ``scale`` / mean(fan_in, fan_out), biases 0, norms 1, 0.

    The variance is multiplied by 0.1 in attention's projections, and is at least 1e-10 / mean(fan_in, fan_out).
    """
    if isinstance(module, Norm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Conv | Dense):
        outputs, inputs = module.weight.shape[:2]
        _uniform(module.weight, (inputs + outputs) * module.weight[0, 0].numel(), scale, generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Projection):
        _uniform(module.W, sum(module.W.shape), scale * 0.1, generator)
        nn.init.zeros_(module.b)
    elif isinstance(module, PointDense):
        _uniform(module.weight, sum(module.weight.shape[:2]), scale * 0.1, generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Table):
        _uniform(module.weight, module.weight.shape[1], scale, generator)


def fill_network(network: nn.Module, ends: list[nn.Module], seed: int, init_scale: float) -> None:
    """Fill every module in order; ``init_scale`` is the scale of ``ends``, the last layers of all branches."""
    generator = torch.Generator().manual_seed(seed)
    small = {id(module) for module in ends}
    for module in network.modules():
        fill(module, init_scale if id(module) in small else 1.0, generator)


def _uniform(weight: Tensor, fans: int, scale: float, generator: torch.Generator) -> None:
    bound = math.sqrt(6 * max(scale, 1e-10) / fans)
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)
