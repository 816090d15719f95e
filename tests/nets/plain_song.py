"""SongUNet written down once more, slowly, on torch's own operations and EDM's own names, to compare with.

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), appendix F, and
the names and conventions in the published state dicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PlainSong:
    """The network as a function of the weights by EDM's names; ``label`` is a class or None."""

    weights: dict[str, Tensor]
    size: int
    levels: int
    n_blocks: int
    attended: tuple[int, ...]
    ncsnpp: bool
    label: int | None = None

    def __call__(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        emb = self.embedding(noise_labels)
        skips, aux = [], x
        for level in range(self.levels):
            name = f"enc.{self.size >> level}x{self.size >> level}"
            if level == 0:
                x = self.conv(f"{name}_conv", x)
            else:
                x = self.block(f"{name}_down", x, emb, down=True)
                if self.ncsnpp:
                    reduced = F.conv2d(aux, self.weights[f"{name}_aux_residual.weight"], padding=2)
                    reduced = self.filtered(reduced, padding=0)
                    reduced = reduced + self.weights[f"{name}_aux_residual.bias"][:, None, None]
                    x = aux = (x + reduced) / math.sqrt(2)
            skips.append(x)
            for index in range(self.n_blocks):
                x = self.block(f"{name}_block{index}", x, emb, attention=level)
                skips.append(x)
        for level in reversed(range(self.levels)):
            name = f"dec.{self.size >> level}x{self.size >> level}"
            if level == self.levels - 1:
                x = self.block(f"{name}_in0", x, emb, attention=True)
                x = self.block(f"{name}_in1", x, emb)
            else:
                x = self.block(f"{name}_up", x, emb, up=True)
            for index in range(self.n_blocks + 1):
                x = torch.cat([x, skips.pop()], 1)
                attention = level if index == self.n_blocks else False
                x = self.block(f"{name}_block{index}", x, emb, attention=attention)
        return self.conv(f"{name}_aux_conv", F.silu(self.norm(f"{name}_aux_norm", x)))

    def embedding(self, labels: Tensor) -> Tensor:
        width = self.weights["map_layer0.weight"].shape[1]
        if self.ncsnpp:
            frequencies = 2 * math.pi * self.weights["map_noise.freqs"]
        else:
            frequencies = 1e4 ** (-torch.arange(width // 2).double() / (width // 2 - 1))
        angles = torch.outer(labels.double(), frequencies.double())
        emb = torch.cat([angles.sin(), angles.cos()], 1).to(self.weights["map_layer0.weight"].dtype)
        if self.label is not None:
            classes = self.weights["map_label.weight"].shape[1]
            one_hot = F.one_hot(torch.tensor([self.label]), classes).to(emb.dtype) * math.sqrt(classes)
            emb = emb + one_hot @ self.weights["map_label.weight"].t()
        emb = F.silu(self.linear("map_layer0", emb))
        return F.silu(self.linear("map_layer1", emb))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = min(32, x.shape[1] // 4)
        return F.group_norm(x, groups, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-6)

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], padding=weight.shape[2] // 2)

    def filtered(self, x: Tensor, up: bool = False, padding: int | None = None) -> Tensor:
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if self.ncsnpp else [1.0, 1.0], dtype=x.dtype)
        kernel = torch.outer(taps, taps) / taps.sum() ** 2
        kernel = kernel.expand(x.shape[1], 1, *kernel.shape)
        if padding is None:
            padding = (len(taps) - 1) // 2
        if up:
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=x.shape[1])
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])

    def block(
        self,
        name: str,
        x: Tensor,
        emb: Tensor,
        *,
        up: bool = False,
        down: bool = False,
        attention: int | bool = False,
    ) -> Tensor:
        """``attention`` is a level, attended or not, True or False."""
        h = F.silu(self.norm(f"{name}.norm0", x))
        if up or down:
            x, h = self.filtered(x, up), self.filtered(h, up)
        h = self.conv(f"{name}.conv0", h) + self.linear(f"{name}.affine", emb)[:, :, None, None]
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)))
        if f"{name}.skip.weight" in self.weights:
            x = self.conv(f"{name}.skip", x)
        x = (x + h) * math.sqrt(0.5)
        if attention is True or (attention is not False and (self.size >> attention) in self.attended):
            batch, channels, height, width = x.shape
            qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x))
            q, k, v = qkv.reshape(batch, channels, 3, height * width).unbind(2)
            matrix = torch.softmax(torch.einsum("bcq,bck->bqk", q, k / math.sqrt(channels)), 2)
            h = torch.einsum("bqk,bck->bcq", matrix, v).reshape(x.shape)
            x = (x + self.conv(f"{name}.proj", h)) * math.sqrt(0.5)
        return x
