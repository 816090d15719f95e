"""The ADM U-Net: guided-diffusion's and improved-diffusion's noise network, EDM's DhariwalUNet, diffusers' UNet2D.

Sources: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021); Dhariwal and Nichol,
"Diffusion Models Beat GANs on Image Synthesis" (2021). Parameters are named as in guided-diffusion's
checkpoints, in the same order; other projects' weights are renamed when they are loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import mistake, one_of, positive, whole
from . import fused
from .adm_blocks import ADMBlock, Down, HeadAttention, Up
from .base import LARGEST, HoistedNetwork, check_depth
from .classes import check_class, class_vectors
from .layers import Conv, Dense, Norm, Table, fill_network, sinusoid

RESAMPLINGS = ("block", "conv", "padded_conv", "plain")
SINUSOIDS = ("cos_sin", "sin_cos")


@dataclass(frozen=True)
class ADMConfig:
    """Everything that determines an ADM network's parameters and arithmetic.

    Attributes:
        image_size: height and width in pixels.
        channels: of the images.
        model_channels: width of the sinusoidal time embedding; a quarter of that of the embedding itself.
        widths: channels of each level; each level halves the resolution.
        n_blocks: residual blocks per level on the way down; one more on the way up.
        attn_resolutions: in pixels; attention follows the blocks there.
        head_channels: channels per attention head; None means ``heads`` heads of whatever width results.
        heads: attention heads where ``head_channels`` is None.
        legacy_attention: q, k and v of a head stand together in ``qkv``; otherwise all q, then all k, all v.
        scale_shift: the embedding scales and shifts the second normalisation; otherwise it is added before.
        resample: "block" (inside a residual block, 2x2 mean or nearest), "conv" (stride-2 convolution, nearest
            and convolution), "padded_conv" (the same, padded at bottom and right only) or "plain" (neither).
        sinusoid: "cos_sin" with frequencies 10000^(-i/half), or "sin_cos" with 10000^(-i/(half - 1)).
        groups: groups of every normalisation.
        narrow_groups: lower them to C // 4 where that is less.
        eps: of every normalisation.
        learned_sigma: twice the channels come out, of which the second half is a variance.
        classes: number of classes of a class-conditional network.
        class_label: the one class it is always told; None: that of each call, or no class embedding at all.
        null_class: trained with label dropout, so that no class embedding at all is a question it knows.
        dropout: in training only.
    """

    image_size: int
    channels: int = 3
    model_channels: int = 128
    widths: tuple[int, ...] = (128, 256, 256, 256)
    n_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int | None = None
    heads: int = 1
    legacy_attention: bool = False
    scale_shift: bool = True
    resample: str = "block"
    sinusoid: str = "cos_sin"
    groups: int = 32
    narrow_groups: bool = False
    eps: float = 1e-5
    learned_sigma: bool = False
    classes: int | None = None
    class_label: int | None = None
    null_class: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "n_blocks", "heads", "groups"):
            whole(name, getattr(self, name), 1, LARGEST.get(name, LARGEST["count"]))
        if self.head_channels is not None:
            whole("head_channels", self.head_channels, 1, LARGEST["width"])
        for name, most in (("widths", LARGEST["width"]), ("attn_resolutions", LARGEST["image_size"])):
            object.__setattr__(
                self, name, tuple(whole(name, value, 1, most) for value in getattr(self, name))
            )
        check_depth(len(self.widths), self.n_blocks)
        one_of("resample", self.resample, RESAMPLINGS)
        one_of("sinusoid", self.sinusoid, SINUSOIDS)
        positive("eps", self.eps)
        for name in ("legacy_attention", "scale_shift", "narrow_groups", "learned_sigma"):
            one_of(name, getattr(self, name), (False, True))
        if whole("model_channels", self.model_channels, 4, LARGEST["width"]) % 2:
            raise ValueError(mistake("model_channels", "even", repr(self.model_channels)))
        if not 0 <= self.dropout < 1:
            raise ValueError(mistake("dropout", "in [0, 1)", repr(self.dropout)))
        if not self.widths:
            raise ValueError(mistake("widths", "at least one level", "none"))
        if self.image_size % 2 ** (len(self.widths) - 1):
            halvings = len(self.widths) - 1
            raise ValueError(mistake("image_size", f"divisible by 2^{halvings}", repr(self.image_size)))
        check_class(self.classes, self.class_label, self.null_class)
        self._check_divisible()

    def _check_divisible(self) -> None:
        for stage in layout(self):
            for part in stage.parts:
                if part.kind == "block" and part.inputs % self.groups_of(part.inputs):
                    wanted = (
                        f"such that every channel count is divisible by {self.groups_of(part.inputs)} groups"
                    )
                    raise ValueError(mistake("widths", wanted, f"{self.widths} (C = {part.inputs})"))
                if part.kind == "attention" and part.inputs % self.heads_of(part.inputs):
                    wanted = f"a divisor of every channel count with attention, {part.inputs} among them"
                    name = "heads" if self.head_channels is None else "head_channels"
                    raise ValueError(mistake(name, wanted, getattr(self, name)))

    @property
    def time_input(self) -> str:
        """Labels are integers, as in the published training code."""
        return "index"

    def groups_of(self, channels: int) -> int:
        """Groups of a normalisation of so many channels."""
        return min(self.groups, channels // 4) if self.narrow_groups else self.groups

    def heads_of(self, channels: int) -> int:
        """Attention heads at so many channels."""
        if self.head_channels is None:
            return self.heads
        # Not a divisor: one head too many, so that the check above fails with the channel count.
        return -(-channels // self.head_channels)


@dataclass(frozen=True)
class Part:
    """One module of a stage: "conv", "block", "attention", "down" or "up"."""

    kind: str
    inputs: int
    outputs: int
    resample: str | None = None


@dataclass(frozen=True)
class Stage:
    """One entry of ``input_blocks``, ``output_blocks``, or the middle; whether its output is kept or one used."""

    name: str
    parts: tuple[Part, ...]
    push: bool = False
    pop: bool = False


def layout(config: ADMConfig) -> list[Stage]:
    """The network as the sequence of its stages, named as in guided-diffusion's state dicts."""
    levels = range(len(config.widths))
    attended = [config.image_size >> level in config.attn_resolutions for level in levels]
    width = config.widths[0]
    entries: list[tuple[Part, ...]] = [(Part("conv", config.channels, width),)]
    skips = [width]
    for level in levels:
        for _ in range(config.n_blocks):
            block = Part("block", width, config.widths[level])
            width = config.widths[level]
            attention = (Part("attention", width, width),) if attended[level] else ()
            entries.append((block, *attention))
            skips.append(width)
        if level != levels[-1]:
            entries.append((_resampler(config, width, "down"),))
            skips.append(width)
    stages = [Stage(f"input_blocks.{i}", parts, push=True) for i, parts in enumerate(entries)]
    block = Part("block", width, width)
    stages.append(Stage("middle_block", (block, Part("attention", width, width), block)))
    count = 0
    for level in reversed(levels):
        for index in range(config.n_blocks + 1):
            parts = [Part("block", width + skips.pop(), config.widths[level])]
            width = config.widths[level]
            if attended[level]:
                parts.append(Part("attention", width, width))
            if level and index == config.n_blocks:
                parts.append(_resampler(config, width, "up"))
            stages.append(Stage(f"output_blocks.{count}", tuple(parts), pop=True))
            count += 1
    return stages


def _resampler(config: ADMConfig, width: int, kind: str) -> Part:
    return Part("block" if config.resample == "block" else kind, width, width, resample=kind)


def time_embedding(labels: Tensor, width: int, kind: str) -> Tensor:
    """Sinusoids [N, width] of real labels [N] in float64, ``kind`` as in ``ADMConfig.sinusoid``."""
    if kind == "sin_cos":
        return sinusoid(labels, width)
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64, device=labels.device) / half
    angles = labels.double()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)


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
            ends.append(ends[-1] + block.n_rows * block.outputs)
        self._columns = list(pairwise(ends))

    def initialise(self, seed: int, init_scale: float = 1.0) -> None:
        """Fill the weights as ``DDPMpp.initialise`` does; ``init_scale`` concerns the layers that end a branch."""
        ends = [block.last for block in self._blocks()]
        ends += [module.proj_out for module in self.modules() if isinstance(module, HeadAttention)]
        fill_network(self, [*ends, self.out["2"]], seed, init_scale)

    def embedding(self, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Rows [N, S] for labels [N]: what every block adds to its pixels, side by side (``ADMBlock.rows``).

        ``classes`` int64 [N] are instead of the configuration's class, -1 being none. Computed in float32 at least,
        returned in the network's dtype.
        """
        first, second = (cast(Dense, self.time_embed[name]) for name in ("0", "2"))
        own = first.weight.dtype
        wide = torch.promote_types(own, torch.float32)
        h = time_embedding(labels, self.config.model_channels, self.config.sinusoid).to(wide)
        h = second(F.silu(first(h)))
        table = None if self.label_emb is None else self.label_emb.weight
        told = class_vectors(table, classes, self.config.class_label, wide)
        h = F.silu(h if told is None else h + told)
        return torch.cat([row for block in self._blocks() for row in block.rows(h)], 1).to(own)

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The network on x [B, C, H, W] with embedding (rows) [1 or B, S]; the result is channels_last."""
        h = x.contiguous(memory_format=torch.channels_last)
        if fused.usable(h, embedding, self):
            return self._fused(h, embedding)
        kept: list[Tensor] = []
        columns = iter(self._columns)
        for stage, modules in zip(self.stages, self._stage_modules(), strict=True):
            skip = kept.pop() if stage.pop else None
            for module in modules:
                if isinstance(module, ADMBlock):
                    start, end = next(columns)
                    h, skip = module(h, embedding[:, start:end], skip), None
                else:
                    h = module(h)
            if stage.push:
                kept.append(h)
        return self.out["2"](cast(Norm, self.out["0"]).silu(h))

    def _fused(self, x: Tensor, rows: Tensor) -> Tensor:
        """The same on the fused kernels."""
        h: fused.Activation = x
        kept: list[fused.Activation] = []
        columns = iter(self._columns)
        for stage, modules in zip(self.stages, self._stage_modules(), strict=True):
            skip = fused.added_up(kept.pop()) if stage.pop else None
            for module in modules:
                if isinstance(module, ADMBlock):
                    start, end = next(columns)
                    h, skip = module.fused(h, rows[:, start:end], skip), None
                elif isinstance(module, HeadAttention):
                    h = module.fused(h)
                else:
                    h = module(fused.added_up(h))
            if stage.push:
                kept.append(h)
        h, _ = fused.enter(h, None, cast(Norm, self.out["0"]).settings())
        return self.out["2"](h)

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


#: Official sizes.
CONFIGS: dict[str, ADMConfig] = {
    "adm-imagenet256": ADMConfig(
        image_size=256,
        model_channels=256,
        widths=(256, 256, 512, 512, 1024, 1024),
        n_blocks=2,
        attn_resolutions=(32, 16, 8),
        head_channels=64,
        legacy_attention=True,
        learned_sigma=True,
    ),
    "iddpm-cifar10": ADMConfig(
        image_size=32,
        model_channels=128,
        widths=(128, 256, 256, 256),
        n_blocks=3,
        attn_resolutions=(16, 8),
        heads=4,
        legacy_attention=True,
        resample="conv",
        learned_sigma=True,
        dropout=0.3,
    ),
}
