"""DDPM++ from ordinary torch modules in ordinary layout: what one gets by porting the published network.

Written from the description of the network; same parameter names as `fastpure.nets.DDPMpp`, so that both run
on the same weights. 'biggan' blocks only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..nets import DDPMppConfig
from ..purify.precision import PRECISIONS
from ..schedule import StepTable


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class NIN(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(channels, channels))
        self.b = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int, resample: str | None = None) -> None:
        super().__init__()
        self.GroupNorm_0 = norm(inputs)
        self.Conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.Dense_0 = nn.Linear(width, outputs)
        self.GroupNorm_1 = norm(outputs)
        self.Conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.Conv_2 = nn.Conv2d(inputs, outputs, 1) if resample or inputs != outputs else nn.Identity()
        self.resample = resample

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        elif self.resample == "up":
            x, h = (F.interpolate(image, scale_factor=2, mode="nearest") for image in (x, h))
        h = self.Conv_0(h) + self.Dense_0(F.silu(embedded))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return (self.Conv_2(x) + h) / math.sqrt(2)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        matrix = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) * x.shape[1] ** -0.5, -1)
        h = self.NIN_3(torch.einsum("bqk,bck->bcq", matrix, v).view_as(x))
        return (x + h) / math.sqrt(2)


class PlainDDPMpp(nn.Module):
    def __init__(self, config: DDPMppConfig) -> None:
        super().__init__()
        if config.block != "biggan":
            raise ValueError("the plain baseline has 'biggan' blocks only")
        nf, width = config.nf, 4 * config.nf
        widths = [nf * multiplier for multiplier in config.ch_mult]
        sizes = [config.image_size >> level for level in range(len(widths))]
        self.nf, self.encoder, self.middle, self.decoder = nf, [], [], []
        modules: list[nn.Module] = [
            nn.Linear(nf, width),
            nn.Linear(width, width),
            nn.Conv2d(config.channels, nf, 3, padding=1),
        ]

        def add(*stage: nn.Module) -> list[nn.Module]:
            modules.extend(stage)
            return list(stage)

        channels, skips = nf, [nf]
        for level, size in enumerate(sizes):
            for _ in range(config.n_blocks):
                stage = add(Block(channels, widths[level], width))
                channels = widths[level]
                stage += add(Attention(channels)) if size in config.attn_resolutions else []
                self.encoder.append(stage)
                skips.append(channels)
            if level + 1 < len(sizes):
                self.encoder.append(add(Block(channels, channels, width, "down")))
                skips.append(channels)
        self.middle = add(
            Block(channels, channels, width), Attention(channels), Block(channels, channels, width)
        )
        for level in reversed(range(len(sizes))):
            for i in range(config.n_blocks + 1):
                stage = add(Block(channels + skips.pop(), widths[level], width))
                channels = widths[level]
                if i == config.n_blocks:
                    stage += add(Attention(channels)) if sizes[level] in config.attn_resolutions else []
                    stage += add(Block(channels, channels, width, "up")) if level else []
                self.decoder.append(stage)
        add(norm(channels), nn.Conv2d(channels, config.channels, 3, padding=1))
        self.all_modules = nn.ModuleList(modules)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        half = self.nf // 2
        frequencies = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000) / (half - 1)))
        angles = labels.float()[:, None] * frequencies
        embedded = self.all_modules[0](torch.cat([angles.sin(), angles.cos()], 1).to(x.dtype))
        embedded = self.all_modules[1](F.silu(embedded))

        def run(stage: list[nn.Module], h: Tensor) -> Tensor:
            for module in stage:
                h = module(h, embedded) if isinstance(module, Block) else module(h)
            return h

        h = self.all_modules[2](x)
        skips = [h]
        for stage in self.encoder:
            h = run(stage, h)
            skips.append(h)
        h = run(self.middle, h)
        for stage in self.decoder:
            h = run(stage, torch.cat([h, skips.pop()], 1))
        return self.all_modules[-1](F.silu(self.all_modules[-2](h)))


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


COMPILE_MODES = ("default", "max-autotune")
"""Modes of ``torch.compile`` that peers are measured in. On CUDA the second replays CUDA graphs and tunes products."""


def compiled(network: nn.Module, mode: str) -> nn.Module:
    """``network`` under ``torch.compile``, for one shape; what cannot be compiled in one piece is an error."""
    made: Any = torch.compile(network, mode=mode, dynamic=False, fullgraph=True)
    return made


@final
class Loop:
    """A purification in a Python loop over a step table, and its gradient by autograd.

    Args:
        network: ``network(x, labels)``; its weights are frozen here.
        table: rows without register or clipping.
        noise: [K, B, C, H, W], one entry per row.
        guide: guidance gradient at a state, or None.
        precision: a name of ``PRECISIONS``: torch's settings (TF32) are those that a purifier of that precision sets.
        recompute: checkpoint every step instead of keeping everything.
        mode: of ``torch.compile`` for the network; None leaves it as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        table: StepTable,
        noise: Tensor,
        guide: Guide | None,
        precision: str = "fp32",
        recompute: bool = False,
        mode: str | None = None,
    ) -> None:
        network = network.requires_grad_(False)
        self.network = network if mode is None else compiled(network, mode)
        self.table, self.noise, self.guide = table, noise, guide
        self.precision, self.recompute, self.mode = PRECISIONS[precision], recompute, mode

    def _step(self, x: Tensor, k: int) -> Tensor:
        row = self.table.rows[k]
        noise_pred = self.network(x, torch.full((len(x),), row.tau, device=x.device))
        after = row.a * x + row.b * noise_pred + row.d * self.noise[k]
        return after if self.guide is None else after + row.c * self.guide(x)

    def _walk(self, x: Tensor) -> Tensor:
        if self.mode is not None:
            # A CUDA graph overwrites what it returned before. Everything from here to the next walk, backward passes
            # included, is one generation, in which nothing that is still alive is overwritten.
            torch.compiler.cudagraph_mark_step_begin()
        for k in range(len(self.table)):
            keeps_all = not (self.recompute and torch.is_grad_enabled())
            x = self._step(x, k) if keeps_all else _checkpoint(self._step, x, k)
        return x

    def purify(self, x: Tensor) -> Tensor:
        """Final state for ``x`` [B, C, H, W] in [-1, 1]."""
        with self.precision.environment(x.device):
            return self._walk(x)

    def gradient(self, x: Tensor, v: Tensor) -> Tensor:
        """Gradient of sum(purify(x) v)."""
        leaf = x.detach().requires_grad_(True)
        with self.precision.environment(x.device):
            found = torch.autograd.grad((self._walk(leaf) * v).sum(), leaf)[0]
            # Autograd may have summed in place into memory that belongs to a CUDA graph.
            return found if self.mode is None else found.clone()


def _checkpoint(step: Callable[[Tensor, int], Tensor], x: Tensor, k: int) -> Tensor:
    # The noise is given, nothing draws: keeping the generators' states would only cost time.
    kept: Any = checkpoint(step, x, k, use_reentrant=False, preserve_rng_state=False)
    return kept
