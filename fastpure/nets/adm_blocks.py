"""The modules of the ADM U-Net: residual blocks, multi-head attention, and what changes the resolution between levels.

Each has a plain way, by torch's operations (training, hooks, the CPU), and where kernels are fused a ``fused`` one.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import frozen, fused
from .base import is_hooked
from .layers import Conv, Dense, Norm, PointDense, to_image, to_tokens
from .packed import PackedMap


class ADMBlock(nn.Module):
    """Residual block of Dhariwal and Nichol, "Diffusion Models Beat GANs" (2021), section 3.

    h = conv(SiLU(norm(conv(R(SiLU(norm(x)))) ...))), conditioned on the time by ``norm(h) (1 + scale) + shift``
    or by adding to h; the result is shortcut(R(x)) + h, R being 2x2 mean, nearest doubling or nothing. The
    embedding comes from ``emb_layers``; ``rows`` is called by the network's ``embedding``, not here.
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
        self.outputs = outputs
        self.emb_layers = nn.ModuleDict({"1": Dense(embedding, 2 * outputs if scale_shift else outputs)})
        self.out_layers = nn.ModuleDict({"0": norms[1], "3": Conv(outputs, outputs)})
        self.skip_connection = Conv(inputs, outputs, size=1) if inputs != outputs else None
        self.packed = PackedMap()

    @property
    def n_rows(self) -> int:
        """How many rows [N, outputs] ``rows`` makes."""
        return 6 if self.scale_shift else 2

    def rows(self, activated: Tensor) -> list[Tensor]:
        """What the block adds to and multiplies its pixels with, [N, outputs] each, from activated embeddings [N, E].

        Behind the first convolution its bias and the embedding, if that is added; behind the second one its bias and
        the shortcut's; where the embedding scales and shifts, then the second normalisation's weight and bias with
        that, and the scale and shift by themselves.
        """
        conv, norm = cast(Conv, self.in_layers["2"]), cast(Norm, self.out_layers["0"])
        last: Tensor = cast(Conv, self.out_layers["3"]).bias
        if self.skip_connection is not None:
            last = last + self.skip_connection.bias
        embedded = self.emb_layers["1"](activated)
        if self.scale_shift:
            scale, shift = embedded.chunk(2, 1)
            gain = 1 + scale
            made = [conv.bias, last, norm.weight * gain, norm.bias * gain + shift, gain, shift]
        else:
            made = [embedded + conv.bias, last]
        return [row.to(embedded.dtype).expand(len(embedded), -1) for row in made]

    @property
    def last(self) -> nn.Module:
        """The layer that ends the branch."""
        return self.out_layers["3"]

    def forward(self, x: Tensor, rows: Tensor, skip: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], rows [1 or B, n_rows outputs]; skip [B, C', H, W] is concatenated to x where given."""
        norm, conv = cast(Norm, self.in_layers["0"]), cast(Conv, self.in_layers["2"])
        if skip is None:
            h = norm.silu(x)
        else:
            x, h = norm.silu_of_concat(x, skip)
        h = resampled(h, self.resample)
        first, _, *affine = rows.chunk(self.n_rows, 1)
        h = self._second_norm(conv(h, first), affine)
        h = self.out_layers["3"](F.dropout(h, self.dropout, self.training))
        x = resampled(x, self.resample)
        return torch.add(x if self.skip_connection is None else self.skip_connection(x), h)

    def _second_norm(self, h: Tensor, affine: list[Tensor]) -> Tensor:
        """SiLU(GroupNorm(h)), scaled and shifted where ``affine`` has the rows for it."""
        norm = cast(Norm, self.out_layers["0"])
        if not affine:
            return norm.silu(h)
        weight, bias, gain, shift = affine
        if len(weight) == 1 and not is_hooked(norm):  # another affine map, which costs nothing
            return frozen.norm_silu(h, weight[0], bias[0], norm.groups, norm.eps)
        return F.silu(norm(h) * gain[:, :, None, None] + shift[:, :, None, None])

    def fused(self, x: fused.Activation, rows: Tensor, skip: Tensor | None = None) -> fused.Pending:
        """The same on the fused kernels, for frozen weights; the last sum is left to whoever reads it."""
        norm, second = cast(Norm, self.in_layers["0"]), cast(Norm, self.out_layers["0"])
        first, last, *affine = (row.contiguous() for row in rows.chunk(self.n_rows, 1)[:4])
        matrix = None if self.skip_connection is None else self.skip_connection.weight[:, :, 0, 0]
        h, s = fused.enter(x, skip, norm.settings(), fused.Shortcut(matrix, self.resample, self.packed))
        h = cast(Conv, self.in_layers["2"]).without_bias(h)
        settings = second.settings()
        if affine:
            settings = settings._replace(weight=affine[0], bias=affine[1])
        h = fused.norm_silu(h, settings, first)
        return fused.Pending(s, cast(Conv, self.out_layers["3"]).without_bias(h), last, 1.0)


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
        self._packed_first, self._packed_last = PackedMap(), PackedMap()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(to_tokens(self.norm(x)))
        batch, pixels, _ = tokens.shape
        if self.legacy:
            q, k, v = tokens.view(batch, pixels, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = tokens.view(batch, pixels, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = frozen.attention(q, k, v).transpose(1, 2).reshape(batch, pixels, -1)
        return torch.add(x, to_image(self.proj_out(h), x.shape[2:]))

    def fused(self, x: fused.Activation) -> fused.Pending:
        """The same on the fused kernels, for frozen weights."""
        y, s = fused.enter(x, None, self.norm.settings(activate=False))
        tokens = to_tokens(fused.mapped(y, self.qkv.weight[:, :, 0], self.qkv.bias, self._packed_first))
        h = to_image(fused.attention(tokens, self.heads, self.legacy), y.shape[2:])
        h = fused.mapped(h, self.proj_out.weight[:, :, 0], None, self._packed_last)
        return fused.Pending(s, h, self.proj_out.bias, 1.0)


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
