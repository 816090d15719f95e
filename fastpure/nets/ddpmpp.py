"""DDPM++ (score-SDE's NCSN++ code path with DDPM++ settings) and EDM's variants of it, driven by a configuration.

Source: Song et al., "Score-Based Generative Modeling through SDEs" (ICLR 2021), the configuration
``vp/cifar10_ddpmpp_deep_continuous`` that DiffPure and COUP purify CIFAR-10 with. Parameters are named
``all_modules.N. ...`` as in its checkpoints, in the same order, so that state dicts load by name and the
averaged weights of a training checkpoint by position. EDM's SongUNet (Karras et al. 2022, appendix F) is the
same network with other names, and as "ncsnpp" with filtered resampling, random Fourier features of the noise
level and the image fed to every level.
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
from .initial import fill_network
from .layers import (
    Attention,
    Conv,
    Dense,
    Downsample,
    Norm,
    ResBlock,
    ResidualInput,
    Table,
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

    frequencies: Tensor | None

    def __init__(self, config: DDPMppConfig) -> None:
        super().__init__()
        self.config = config
        self.steps = layout(config)
        width, narrow = 4 * config.nf, config.embedding_mult * config.nf
        first = [Dense(narrow, width), Dense(width, width)]
        self.all_modules = nn.ModuleList([*first, *(_build(step, config) for step in self.steps)])
        self.label_emb = None if config.classes is None else Table(config.classes, narrow)
        fourier = config.embedding == "fourier"
        self.register_buffer("frequencies", torch.empty(narrow // 2) if fourier else None)
        ends = [0]
        for step in self.steps:
            ends.append(ends[-1] + (step.outputs if step.kind == "block" else 0))
        self._columns = list(pairwise(ends))

    def initialise(self, seed: int, init_scale: float = 1.0) -> None:
        """Fill the weights: uniform with variance 1 / mean(fan_in, fan_out), biases 0, norms 1 and 0.

        ``init_scale`` multiplies that variance (at least 1e-10) in the last layer of every residual branch
        and of the network, and 0.1 in attention's projections, as in the reference implementation.
        """
        ends = [self.all_modules[-1]]
        for module in self.all_modules:
            if isinstance(module, ResBlock):
                ends.append(module.Conv_1)
            elif isinstance(module, Attention):
                ends.append(module.NIN_3)
        fill_network(self, ends, seed, init_scale)
        if self.frequencies is not None:
            generator = torch.Generator().manual_seed(seed)
            self.frequencies.copy_(16 * torch.randn(self.frequencies.shape, generator=generator))

    def embedding(self, labels: Tensor) -> Tensor:
        """Rows [N, S] for labels [N]: every block's projection of the time embedding, side by side.

        Computed in float32 at least (float64 for a float64 network), returned in the network's dtype.
        """
        first, second = (cast(Dense, module) for module in self.all_modules[:2])
        own = first.weight.dtype
        wide = torch.promote_types(own, torch.float32)
        h = self._sinusoid(labels).to(wide)
        if self.label_emb is not None and self.config.class_label is not None:
            h = h + self.label_emb.weight[self.config.class_label].to(wide)
        h = F.silu(second(F.silu(first(h))))
        blocks = [module for module in self.all_modules if isinstance(module, ResBlock)]
        return torch.cat([block.Dense_0(h) for block in blocks], 1).to(own)

    def _sinusoid(self, labels: Tensor) -> Tensor:
        if self.frequencies is None:
            return sinusoid(labels, self.config.embedding_mult * self.config.nf)
        angles = labels.double()[:, None] * (2 * math.pi * self.frequencies.double())
        return torch.cat([angles.sin(), angles.cos()], 1)

    def body(self, x: Tensor, rows: Tensor) -> Tensor:
        """The network on x [B, C, H, W] with rows [1 or B, S] of ``embedding``; returns [B, C, H, W].

        The result is channels_last in memory, whatever x is.
        """
        h = x.contiguous(memory_format=torch.channels_last)
        image = h
        kept: list[Tensor] = []
        modules = list(self.all_modules)[2:]
        for step, module, (start, end) in zip(self.steps, modules, self._columns, strict=True):
            if isinstance(module, ResBlock):
                h = module(h, rows[:, start:end], kept.pop() if step.pop else None)
            elif isinstance(module, Norm):
                h = module.silu(h)
            elif isinstance(module, ResidualInput):
                h = image = module(h, image)
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
    if step.kind == "residual":
        return ResidualInput(step.inputs, step.outputs)
    if step.kind == "norm":
        return reference_norm(step.inputs)
    return ResBlock(
        step.inputs,
        step.outputs,
        4 * config.nf,
        block=config.block,
        resample=step.resample,
        dropout=config.dropout,
        fir=config.fir,
    )
