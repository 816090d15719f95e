"""DDPM++ (score-SDE's NCSN++ code path with DDPM++ settings), driven by a configuration.

Source: Song et al., "Score-Based Generative Modeling through SDEs" (ICLR 2021), the configuration
``vp/cifar10_ddpmpp_deep_continuous`` that DiffPure and COUP purify CIFAR-10 with. Parameters are named
``all_modules.N. ...`` as in its checkpoints, in the same order, so that state dicts load by name and the
averaged weights of a training checkpoint by position.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import HoistedNetwork
from .ddpmpp_config import DDPMppConfig, Step, layout
from .layers import (
    Attention,
    Conv,
    Dense,
    Downsample,
    Norm,
    Projection,
    ResBlock,
    Upsample,
    reference_norm,
    sinusoid,
)


class DDPMpp(HoistedNetwork):
    """The DDPM++ noise network. Its weights are undefined until ``initialise`` or a checkpoint fills them.

    x [B, C, H, W] in [-1, 1] scaling plus noise; ``labels`` real numbers [B] (999 t for the published
    weights). What depends on the labels only is one row of numbers per label (``embedding``); ``body`` does
    the rest.
    """

    def __init__(self, config: DDPMppConfig) -> None:
        super().__init__()
        self.config = config
        self.steps = layout(config)
        width = 4 * config.nf
        first = [Dense(config.nf, width), Dense(width, width)]
        self.all_modules = nn.ModuleList([*first, *(_build(step, config) for step in self.steps)])
        ends = [0]
        for step in self.steps:
            ends.append(ends[-1] + (step.outputs if step.kind == "block" else 0))
        self._columns = list(pairwise(ends))

    def initialise(self, seed: int, init_scale: float = 1.0) -> None:
        """Fill the weights: uniform with variance 1 / mean(fan_in, fan_out), biases 0, norms 1 and 0.

        ``init_scale`` multiplies that variance (at least 1e-10) in the last layer of every residual branch
        and of the network, and 0.1 in attention's projections, as in the reference implementation.
        """
        generator = torch.Generator().manual_seed(seed)
        ends = [self.all_modules[-1]]
        for module in self.all_modules:
            if isinstance(module, ResBlock):
                ends.append(module.Conv_1)
            elif isinstance(module, Attention):
                ends.append(module.NIN_3)
        small = {id(module) for module in ends}
        for module in self.modules():
            _fill(module, init_scale if id(module) in small else 1.0, generator)

    def embedding(self, labels: Tensor) -> Tensor:
        """Rows [N, S] for labels [N]: every block's projection of the time embedding, side by side.

        Computed in float32 at least (float64 for a float64 network), returned in the network's dtype.
        """
        first, second = (cast(Dense, module) for module in self.all_modules[:2])
        own = first.weight.dtype
        wide = torch.promote_types(own, torch.float32)
        h = F.silu(second(F.silu(first(sinusoid(labels, self.config.nf).to(wide)))))
        blocks = [module for module in self.all_modules if isinstance(module, ResBlock)]
        return torch.cat([block.Dense_0(h) for block in blocks], 1).to(own)

    def body(self, x: Tensor, rows: Tensor) -> Tensor:
        """The network on x [B, C, H, W] with rows [1 or B, S] of ``embedding``; returns [B, C, H, W].

        The result is channels_last in memory, whatever x is.
        """
        h = x.contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []
        modules = list(self.all_modules)[2:]
        for step, module, (start, end) in zip(self.steps, modules, self._columns, strict=True):
            if isinstance(module, ResBlock):
                h = module(h, rows[:, start:end], kept.pop() if step.pop else None)
            elif isinstance(module, Norm):
                h = module.silu(h)
            else:
                h = module(h)
            if step.push:
                kept.append(h)
        return h

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Noise prediction [B, C, H, W] for x [B, C, H, W] and real labels [B]."""
        return self.body(x, self.embedding(labels))


def _build(step: Step, config: DDPMppConfig) -> nn.Module:
    if step.kind == "conv":
        return Conv(step.inputs, step.outputs)
    if step.kind == "attention":
        return Attention(step.inputs)
    if step.kind == "down":
        return Downsample(step.inputs)
    if step.kind == "up":
        return Upsample(step.inputs)
    if step.kind == "norm":
        return reference_norm(step.inputs)
    return ResBlock(
        step.inputs,
        step.outputs,
        4 * config.nf,
        block=config.block,
        resample=step.resample,
        dropout=config.dropout,
    )


def _fill(module: nn.Module, scale: float, generator: torch.Generator) -> None:
    if isinstance(module, Norm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Conv | Dense):
        outputs, inputs = module.weight.shape[:2]
        _fill_uniform(module.weight, (inputs + outputs) * module.weight[0, 0].numel(), scale, generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Projection):
        _fill_uniform(module.W, sum(module.W.shape), scale * 0.1, generator)
        nn.init.zeros_(module.b)


def _fill_uniform(weight: Tensor, fans: int, scale: float, generator: torch.Generator) -> None:
    bound = math.sqrt(6 * max(scale, 1e-10) / fans)
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)
