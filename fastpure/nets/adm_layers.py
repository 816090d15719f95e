"""Building blocks of the ADM U-Net: parameters named as in guided-diffusion's checkpoints."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import frozen
from .layers import Conv, Dense, Norm, PointDense, sinusoid, to_image, to_tokens


class ADMBlock(nn.Module):
    """Residual block of Dhariwal and Nichol, "Diffusion Models Beat GANs" (2021), section 3.

    h = conv(SiLU(norm(conv(R(SiLU(norm(x)))) ...))), conditioned on the time by ``norm(h) (1 + scale) + shift``
    or by adding to h; the result is shortcut(R(x)) + h, R being 2x2 mean, nearest doubling or nothing. The row
    comes from ``emb_layers`` and is made by the network's ``embedding``, not here.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        norms: tuple[Norm, Norm],
        scale_shift: bool,
        resample: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample
        self.dropout = dropout
        self.in_layers = nn.ModuleDict({"0": norms[0], "2": Conv(inputs, outputs)})
        self.row_width = 2 * outputs if scale_shift else outputs
        self.emb_layers = nn.ModuleDict({"1": Dense(embedding, self.row_width)})
        self.out_layers = nn.ModuleDict({"0": norms[1], "3": Conv(outputs, outputs)})
        self.skip_connection = Conv(inputs, outputs, size=1) if inputs != outputs else None

    def row(self, activated: Tensor) -> Tensor:
        """[N, row_width] from the activated embedding [N, E]."""
        return self.emb_layers["1"](activated)

    @property
    def last(self) -> nn.Module:
        """The layer that ends the branch."""
        return self.out_layers["3"]

    def forward(self, x: Tensor, row: Tensor, skip: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], row [1 or B, row_width], skip [B, C', H, W] concatenated to x where given."""
        norm, conv = cast(Norm, self.in_layers["0"]), cast(Conv, self.in_layers["2"])
        if skip is None:
            h = norm.silu(x)
        else:
            x, h = norm.silu_of_concat(x, skip)
        h = resampled(h, self.resample)
        if self.scale_shift:
            h = self._modulated(conv(h), row)
        else:
            h = conv(h, row) if len(row) == 1 else conv(h) + row[:, :, None, None]
            h = cast(Norm, self.out_layers["0"]).silu(h)
        h = self.out_layers["3"](F.dropout(h, self.dropout, self.training))
        x = resampled(x, self.resample)
        return torch.add(x if self.skip_connection is None else self.skip_connection(x), h)

    def _modulated(self, h: Tensor, row: Tensor) -> Tensor:
        """SiLU(norm(h) (1 + scale) + shift)."""
        norm = cast(Norm, self.out_layers["0"])
        scale, shift = row.chunk(2, 1)
        if len(row) == 1:  # one row for all images is another affine map, which costs nothing
            gain = 1 + scale[0]
            return frozen.norm_silu(h, norm.weight * gain, norm.bias * gain + shift[0], norm.groups, norm.eps)
        return F.silu(norm(h) * (1 + scale)[:, :, None, None] + shift[:, :, None, None])


class HeadAttention(nn.Module):
    """Multi-head self-attention over pixels with logits scaled by D^-1/2; the result is x + h.

    ``legacy``: the 3 C channels of ``qkv`` are [heads, (q, k, v), D], otherwise [(q, k, v), heads, D].
    """

    def __init__(self, channels: int, norm: Norm, heads: int, legacy: bool) -> None:
        super().__init__()
        self.heads = heads
        self.legacy = legacy
        self.norm = norm
        self.qkv = PointDense(channels, 3 * channels)
        self.proj_out = PointDense(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(to_tokens(self.norm(x)))
        batch, pixels, _ = tokens.shape
        if self.legacy:
            q, k, v = tokens.view(batch, pixels, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = tokens.view(batch, pixels, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = frozen.attention(q, k, v).transpose(1, 2).reshape(batch, pixels, -1)
        return torch.add(x, to_image(self.proj_out(h), x.shape[2:]))


class Down(nn.Module):
    """Half the resolution: stride-2 convolution ``op``, or the mean of 2x2 where there is none."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.op: Conv | None = None
        if kind != "plain":
            self.op = Conv(channels, channels, stride=2, padding=0 if kind == "padded_conv" else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.op is None:
            return frozen.mean_down(x)
        return self.op(F.pad(x, (0, 1, 0, 1)) if self.op.padding == 0 else x)


class Up(nn.Module):
    """Twice the resolution: nearest, then the convolution ``conv`` where there is one."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.conv = Conv(channels, channels) if kind != "plain" else None

    def forward(self, x: Tensor) -> Tensor:
        x = resampled(x, "up")
        return x if self.conv is None else self.conv(x)


def resampled(x: Tensor, kind: str | None) -> Tensor:
    """2x2 mean ("down"), nearest doubling ("up") or x itself (None)."""
    if kind == "down":
        return frozen.mean_down(x)
    return x if kind is None else F.interpolate(x, scale_factor=2, mode="nearest")


def time_embedding(labels: Tensor, width: int, kind: str) -> Tensor:
    """Sinusoids [N, width] of real labels [N] in float64, ``kind`` as in `ADMConfig.sinusoid`."""
    if kind == "sin_cos":
        return sinusoid(labels, width)
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64, device=labels.device) / half
    angles = labels.double()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)
