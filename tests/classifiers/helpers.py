"""Small networks with weights of no special value, and what they are told and shown."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fastpure.classifiers import WideResNetConfig

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
WIDE = WideResNetConfig(depth=10, widen=2)
DEEPMIND = replace(WIDE, activation="silu", same_padding=True, mean=MEAN, std=STD)
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def used(net: nn.Module, seed: int = 0) -> nn.Module:
    """``net`` with weights and statistics of no special value, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return net.eval()


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in weights.items()}
