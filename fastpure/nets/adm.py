"""The ADM U-Net: guided-diffusion's and improved-diffusion's noise network, EDM's DhariwalUNet, diffusers' UNet2D.

Sources: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021); Dhariwal and Nichol,
"Diffusion Models Beat GANs on Image Synthesis" (2021). Parameters are named as in guided-diffusion's
checkpoints, in the same order; other projects' weights are renamed when they are loaded.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import mistake
from .adm_config import ADMConfig, Part, layout
from .adm_layers import ADMBlock, Down, HeadAttention, Up, time_embedding
from .base import HoistedNetwork
from .initial import fill_network
from .layers import Conv, Dense, Norm, Table


class ADM(HoistedNetwork):
    """The ADM noise network. Its weights are undefined until ``initialise`` or a checkpoint fills them.

    x [B, C, H, W] in [-1, 1] scaling plus noise; ``labels`` numbers [B]. The output has 2 C channels if the
    network learned a variance. The class is that of the configuration, unless classes [B] are given.
    """

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        width = 4 * config.model_channels
        self.time_embed = nn.ModuleDict({"0": Dense(config.model_channels, width), "2": Dense(width, width)})
        self.label_emb = None if config.classes is None else Table(config.classes, width)
        self.stages = layout(config)
        built = {
            stage.name: nn.ModuleList(self._build(part) for part in stage.parts) for stage in self.stages
        }

        def group(prefix: str) -> nn.ModuleList:
            return nn.ModuleList(module for name, module in built.items() if name.startswith(prefix))

        self.input_blocks = group("input_blocks")
        self.middle_block = built["middle_block"]
        self.output_blocks = group("output_blocks")
        outputs = config.channels * (2 if config.learned_sigma else 1)
        last = config.widths[0]
        self.out = nn.ModuleDict({"0": self._norm(last), "2": Conv(last, outputs)})
        ends = [0]
        for block in self._blocks():
            ends.append(ends[-1] + block.row_width)
        self._columns = list(pairwise(ends))

    def initialise(self, seed: int, init_scale: float = 1.0) -> None:
        """Fill the weights as `DDPMpp.initialise` does; ``init_scale`` concerns the layers that end a branch."""
        ends = [block.last for block in self._blocks()]
        ends += [module.proj_out for module in self.modules() if isinstance(module, HeadAttention)]
        fill_network(self, [*ends, self.out["2"]], seed, init_scale)

    def embedding(self, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Rows [N, S] for labels [N]: every block's projection of the embedding, side by side.

        ``classes`` int64 [N] are instead of the configuration's class. Computed in float32 at least, returned in
        the network's dtype.
        """
        first, second = (cast(Dense, self.time_embed[name]) for name in ("0", "2"))
        own = first.weight.dtype
        wide = torch.promote_types(own, torch.float32)
        h = time_embedding(labels, self.config.model_channels, self.config.sinusoid).to(wide)
        h = second(F.silu(first(h)))
        if classes is None and self.config.class_label is not None:
            classes = torch.full((len(labels),), self.config.class_label, device=labels.device)
        if classes is not None:
            if self.label_emb is None:
                raise ValueError(
                    mistake("classes", "None for a network without classes", list(classes.shape))
                )
            h = h + self.label_emb.weight[classes].to(wide)
        h = F.silu(h)
        return torch.cat([block.row(h) for block in self._blocks()], 1).to(own)

    def body(self, x: Tensor, rows: Tensor) -> Tensor:
        """The network on x [B, C, H, W] with rows [1 or B, S] of ``embedding``; the result is channels_last."""
        h = x.contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []
        columns = iter(self._columns)
        for stage, modules in zip(self.stages, self._stage_modules(), strict=True):
            skip = kept.pop() if stage.pop else None
            for module in modules:
                if isinstance(module, ADMBlock):
                    start, end = next(columns)
                    h, skip = module(h, rows[:, start:end], skip), None
                else:
                    h = module(h)
            if stage.push:
                kept.append(h)
        return self.out["2"](cast(Norm, self.out["0"]).silu(h))

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Output [B, C or 2 C, H, W] for x [B, C, H, W], labels [B] and, if given, classes int64 [B]."""
        return self.body(x, self.embedding(labels, classes))

    def _stage_modules(self) -> list[nn.ModuleList]:
        stages = [*self.input_blocks, self.middle_block, *self.output_blocks]
        return [cast(nn.ModuleList, stage) for stage in stages]

    def _blocks(self) -> list[ADMBlock]:
        """The residual blocks in the order in which they run."""
        return [module for stage in self._stage_modules() for module in stage if isinstance(module, ADMBlock)]

    def _norm(self, channels: int) -> Norm:
        return Norm(channels, self.config.groups_of(channels), self.config.eps)

    def _build(self, part: Part) -> nn.Module:
        config = self.config
        if part.kind == "conv":
            return Conv(part.inputs, part.outputs)
        if part.kind == "attention":
            heads = config.heads_of(part.inputs)
            return HeadAttention(part.inputs, self._norm(part.inputs), heads, config.legacy_attention)
        if part.kind == "down":
            return Down(part.inputs, config.resample)
        if part.kind == "up":
            return Up(part.inputs, config.resample)
        return ADMBlock(
            part.inputs,
            part.outputs,
            4 * config.model_channels,
            norms=(self._norm(part.inputs), self._norm(part.outputs)),
            scale_shift=config.scale_shift,
            resample=part.resample,
            dropout=config.dropout,
        )
