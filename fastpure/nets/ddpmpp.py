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
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import mistake, one_of, whole
from . import fused, narrow
from .base import LARGEST, HoistedNetwork, check_depth
from .classes import check_class, class_vectors
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
    fill_network,
    reference_norm,
    sinusoid,
)


@dataclass(frozen=True)
class DDPMppConfig:
    """Everything that determines a DDPM++ or NCSN++ network's parameters and arithmetic.

    Attributes:
        image_size: height and width in pixels.
        channels: of the images.
        nf: channels at full resolution.
        ch_mult: level i has ``nf * ch_mult[i]`` channels; each level halves the resolution.
        n_blocks: residual blocks per level.
        attn_resolutions: in pixels; attention follows the blocks there.
        block: "biggan" or "ddpm".
        dropout: in training only.
        embedding: "positional" or "fourier" (EDM's: random frequencies, of which the checkpoint has the values).
        embedding_mult: the time embedding is so many times ``nf`` wide.
        fir: resample with the filter [1, 3, 3, 1], as NCSN++ does.
        residual_input: feed the image itself to every level, as NCSN++ does.
        classes: as in ``ADMConfig``.
        class_label: as in ``ADMConfig``.
        null_class: as in ``ADMConfig``.
    """

    image_size: int
    channels: int = 3
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    n_blocks: int = 8
    attn_resolutions: tuple[int, ...] = (16,)
    block: str = "biggan"
    dropout: float = 0.1
    embedding: str = "positional"
    embedding_mult: int = 1
    fir: bool = False
    residual_input: bool = False
    classes: int | None = None
    class_label: int | None = None
    null_class: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "n_blocks", "embedding_mult"):
            whole(name, getattr(self, name), 1, LARGEST.get(name, LARGEST["count"]))
        whole("nf", self.nf, 4, LARGEST["width"])
        for name, most in (("ch_mult", LARGEST["count"]), ("attn_resolutions", LARGEST["image_size"])):
            object.__setattr__(
                self, name, tuple(whole(name, value, 1, most) for value in getattr(self, name))
            )
        check_depth(len(self.ch_mult), self.n_blocks)
        one_of("block", self.block, ("biggan", "ddpm"))
        one_of("embedding", self.embedding, ("positional", "fourier"))
        for name in ("fir", "residual_input"):
            one_of(name, getattr(self, name), (False, True))
        if (self.fir or self.residual_input) and self.block != "biggan":
            raise ValueError(
                mistake("block", "'biggan' where fir or residual_input is used", repr(self.block))
            )
        if self.residual_input and not self.fir:
            raise ValueError(mistake("fir", "True where residual_input is", "False"))
        check_class(self.classes, self.class_label, self.null_class)
        if not 0 <= self.dropout < 1:
            raise ValueError(mistake("dropout", "in [0, 1)", repr(self.dropout)))
        if not self.ch_mult:
            raise ValueError(mistake("ch_mult", "at least one multiplier", "none"))
        if self.image_size % 2 ** (len(self.ch_mult) - 1):
            halvings = len(self.ch_mult) - 1
            raise ValueError(mistake("image_size", f"divisible by 2^{halvings}", repr(self.image_size)))
        for channels in {step.inputs for step in layout(self) if step.kind in _NORMALISED}:
            if channels % min(channels // 4, 32):
                wanted = "such that every channel count is divisible by its number of groups, min(C // 4, 32)"
                raise ValueError(mistake("nf", wanted, f"{self.nf} (C = {channels})"))

    @property
    def time_input(self) -> str:
        """Labels are real numbers, 999 t."""
        return "continuous"

    @property
    def learned_sigma(self) -> bool:
        """Whether twice the channels come out: never."""
        return False


_NORMALISED = ("block", "attention", "norm")


@dataclass(frozen=True)
class Step:
    """One module of the network: its kind and channels, and whether it keeps its output or uses a kept one."""

    kind: str  # "conv", "block", "attention", "down", "up", "residual" or "norm"
    inputs: int
    outputs: int
    resample: str | None = None
    push: bool = False
    pop: bool = False


def layout(config: DDPMppConfig) -> list[Step]:
    """The network as the sequence of its modules, ``all_modules.2`` first."""
    widths = [config.nf * multiplier for multiplier in config.ch_mult]
    levels = range(len(widths))
    attended = [config.image_size >> level in config.attn_resolutions for level in levels]
    resampler = {"biggan": "block", "ddpm": None}[config.block]
    steps = [Step("conv", config.channels, config.nf, push=True)]
    skips = [config.nf]
    width, image = config.nf, config.channels
    for level in levels:
        for _ in range(config.n_blocks):
            steps.append(Step("block", width, widths[level], push=not attended[level]))
            width = widths[level]
            if attended[level]:
                steps.append(Step("attention", width, width, push=True))
            skips.append(width)
        if level != levels[-1]:
            steps.append(
                Step(resampler or "down", width, width, resample="down", push=not config.residual_input)
            )
            if config.residual_input:
                steps.append(Step("residual", image, width, push=True))
                image = width
            skips.append(width)
    steps += [Step("block", width, width), Step("attention", width, width), Step("block", width, width)]
    for level in reversed(levels):
        for _ in range(config.n_blocks + 1):
            steps.append(Step("block", width + skips.pop(), widths[level], pop=True))
            width = widths[level]
        if attended[level]:
            steps.append(Step("attention", width, width))
        if level:
            steps.append(Step(resampler or "up", width, width, resample="up"))
    return [*steps, Step("norm", width, width), Step("conv", width, config.channels)]


class DDPMpp(HoistedNetwork):
    """The DDPM++ noise network. Its weights are undefined until ``initialise`` or a checkpoint fills them.

    x [B, C, H, W] in [-1, 1] scaling plus noise; ``labels`` real numbers [B] (999 t for the published
    weights). What depends on the labels only is one vector per label (``embedding``); ``body`` does the rest.
    """

    frequencies: Tensor | None

    def __init__(self, config: DDPMppConfig) -> None:
        super().__init__()
        self.config = config
        self.steps = layout(config)
        width, inner = 4 * config.nf, config.embedding_mult * config.nf
        first = [Dense(inner, width), Dense(width, width)]
        self.all_modules = nn.ModuleList([*first, *(_build(step, config) for step in self.steps)])
        self.label_emb = None if config.classes is None else Table(config.classes, inner)
        fourier = config.embedding == "fourier"
        self.register_buffer("frequencies", torch.empty(inner // 2) if fourier else None)
        ends = [0]
        for step in self.steps:
            ends.append(ends[-1] + (2 * step.outputs if step.kind == "block" else 0))
        self._columns = list(pairwise(ends))
        self.programs = narrow.Programs(self.steps) if narrow.suits(self.steps, config) else None

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

    def embedding(self, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Rows [N, S] for labels [N]: what every block adds to its pixels, side by side (``ResBlock.rows``).

        ``classes`` int64 [N] are instead of the configuration's class, -1 being none. Computed in float32 at least
        (float64 for a float64 network), returned in the network's dtype.
        """
        first, second = (cast(Dense, module) for module in self.all_modules[:2])
        own = first.weight.dtype
        wide = torch.promote_types(own, torch.float32)
        h = self._sinusoid(labels).to(wide)
        table = None if self.label_emb is None else self.label_emb.weight
        told = class_vectors(table, classes, self.config.class_label, wide)
        h = h if told is None else h + told
        h = F.silu(second(F.silu(first(h))))
        blocks = [module for module in self.all_modules if isinstance(module, ResBlock)]
        return torch.cat([row for block in blocks for row in block.rows(h)], 1).to(own)

    def _sinusoid(self, labels: Tensor) -> Tensor:
        if self.frequencies is None:
            return sinusoid(labels, self.config.embedding_mult * self.config.nf)
        angles = labels.double()[:, None] * (2 * math.pi * self.frequencies.double())
        return torch.cat([angles.sin(), angles.cos()], 1)

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The network on x [B, C, H, W] with embedding (rows) [1 or B, S]; returns [B, C, H, W].

        The result is channels_last in memory, whatever x is.

        Raises:
            ValueError: x is no image batch, or a narrow network (``fastpure.nets.narrow``) was given embeddings of
                another shape.
        """
        if x.dim() != 4:
            raise ValueError(mistake("x", "of shape [B, C, H, W]", list(x.shape)))
        h = x.contiguous(memory_format=torch.channels_last)
        if not fused.usable(h, embedding, self):
            return self.plain(h, embedding)
        result = None if self.programs is None else self.programs.run(self, h, embedding)
        return self._fused(h, embedding) if result is None else result

    def plain(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The same in torch's operations, as far as ``frozen`` leaves them."""
        h = image = x
        kept: list[Tensor] = []
        for step, module, (start, end) in self.walk():
            if isinstance(module, ResBlock):
                h = module(h, embedding[:, start:end], kept.pop() if step.pop else None)
            elif isinstance(module, Norm):
                h = module.silu(h)
            elif isinstance(module, ResidualInput):
                h = image = module(h, image)
            else:
                h = module(h)
            if step.push:
                kept.append(h)
        return h

    def _fused(self, x: Tensor, rows: Tensor) -> Tensor:
        """The same on the fused kernels."""
        h: fused.Activation = x
        image = x
        kept: list[fused.Activation] = []
        for step, module, (start, end) in self.walk():
            if isinstance(module, ResBlock):
                skip = fused.added_up(kept.pop()) if step.pop else None
                h = module.fused(h, rows[:, start:end], skip)
            elif isinstance(module, Attention):
                h = module.fused(h)
            elif isinstance(module, Norm):
                h, _ = fused.enter(h, None, module.settings())
            elif isinstance(module, ResidualInput):
                h = image = module(fused.added_up(h), image)
            else:
                h = module(fused.added_up(h))
            if step.push:
                kept.append(h)
        return fused.added_up(h)

    def walk(self) -> Iterator[tuple[Step, nn.Module, tuple[int, int]]]:
        """Every step with its module and its columns of the rows."""
        return zip(self.steps, list(self.all_modules)[2:], self._columns, strict=True)

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Noise prediction [B, C, H, W] for x [B, C, H, W], real labels [B] and, if given, classes int64 [B]."""
        return self.body(x, self.embedding(labels, classes))


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


#: Official sizes, and those of the bundled models.
CONFIGS: dict[str, DDPMppConfig] = {
    "ddpmpp-cifar10": DDPMppConfig(image_size=32),
    "ddpmpp-cifar10-small": DDPMppConfig(
        image_size=32, nf=32, ch_mult=(1, 2, 2), n_blocks=1, attn_resolutions=(8,), dropout=0.0
    ),
    "ddpmpp-digits": DDPMppConfig(
        image_size=8, channels=1, nf=16, ch_mult=(1, 2), n_blocks=1, attn_resolutions=(4,), dropout=0.1
    ),
}
