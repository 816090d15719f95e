"""Building blocks of the U-Nets: parameters as in published checkpoints, arithmetic in ``fused`` and ``frozen``.

Activations are channels_last throughout, and so are convolution weights from birth. Measured on the CPU (B = 2,
official size), that makes 3x3 convolutions on 32 and 16 pixels 3 to 8 % and 1x1 convolutions about 30 % faster;
the small feature maps, where ordinary layout would be faster, run on packed weights. Attention's tokens are a view.

Random weights, for networks that are to be trained or measured without a checkpoint, come last.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import frozen, fused
from .base import is_hooked
from .fir import filtered
from .packed import Joined, PackedMap, PackedWeight
from .products import product

RESIDUAL = math.sqrt(0.5)
"""What a block multiplies its sum with, as the reference implementation does."""


class Conv(nn.Module):
    """Square convolution with bias; weight [out, in, k, k] in channels_last, ``padding`` k // 2 by default."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        shape = (outputs, inputs, size, size)
        self.weight = nn.Parameter(torch.empty(shape, memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride = stride
        self.padding = size // 2 if padding is None else padding
        self.packed = PackedWeight()

    def forward(self, x: Tensor, row: Tensor | None = None) -> Tensor:
        """Convolve x [B, C, H, W]; ``row`` [1 or B, outputs] is added instead of the bias, which it includes."""
        if row is None or len(row) == 1:
            bias = self.bias if row is None else row[0]
            return frozen.conv2d(x, self.weight, bias, self.stride, self.padding, self.packed)
        return self.without_bias(x) + row[:, :, None, None]

    def without_bias(self, x: Tensor) -> Tensor:
        """Convolve x [B, C, H, W] and leave the bias to the operation that follows."""
        return frozen.conv2d(x, self.weight, None, self.stride, self.padding, self.packed)


class Norm(nn.Module):
    """GroupNorm over ``groups`` groups; ``forward`` normalises, ``silu`` also applies SiLU."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.groups = groups
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return frozen.norm(x, self.weight, self.bias, self.groups, self.eps)

    def settings(self, activate: bool = True) -> fused.Normalisation:
        """What the fused operations are told."""
        return fused.Normalisation(self.weight, self.bias, self.groups, self.eps, activate)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU(GroupNorm(x)) in one pass."""
        if is_hooked(self):
            return F.silu(self(x))
        return frozen.norm_silu(x, self.weight, self.bias, self.groups, self.eps)

    def silu_of_concat(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """(concatenation of x and skip, SiLU(GroupNorm(concatenation)))."""
        if is_hooked(self):
            both = torch.cat([x, skip], 1)
            return both, F.silu(self(both))
        return frozen.concat_norm_silu(x, skip, self.weight, self.bias, self.groups, self.eps)


class Dense(nn.Module):
    """Affine map of the time embedding, computed in the input's dtype; weight [out, in]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return product(F.linear, x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Projection(nn.Module):
    """The reference implementation's NIN: a matrix ``W`` [in, out] and bias ``b`` applied to every pixel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(inputs, outputs))
        self.b = nn.Parameter(torch.empty(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, S, in] -> [B, S, out]."""
        batch, pixels, inputs = tokens.shape
        return product(torch.addmm, self.b, tokens.reshape(-1, inputs), self.W).view(batch, pixels, -1)

    def on_image(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H, W]."""
        return to_image(self(to_tokens(x)), x.shape[2:])


class PointDense(nn.Module):
    """The same stored as guided-diffusion does, as a convolution of length 1: ``weight`` [out, in, 1], ``bias``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, S, in] -> [B, S, out]."""
        batch, pixels, inputs = tokens.shape
        weight = self.weight[:, :, 0].t()
        return product(torch.addmm, self.bias, tokens.reshape(-1, inputs), weight).view(batch, pixels, -1)


class Table(nn.Module):
    """One vector per class: ``weight`` [classes, width]."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] (channels_last: a view) -> [B, H*W, C]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_image(tokens: Tensor, size: torch.Size) -> Tensor:
    """[B, H*W, C] -> [B, C, H, W], channels_last."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Residual block, 'biggan' (resamples inside, 1x1 convolution as shortcut) or 'ddpm' (``NIN_0``).

    h = Conv_1(SiLU(GroupNorm_1(Conv_0(R(SiLU(GroupNorm_0(x)))) + e))); the result is (shortcut(x) +
    h)/sqrt(2), R being 2x2 mean, nearest doubling or nothing. ``Dense_0`` makes e from the time
    embedding; ``rows`` is called by the network's ``embedding``, not here.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        block: str = "biggan",
        resample: str | None = None,
        dropout: float = 0.0,
        fir: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.dropout = dropout
        self.fir = fir
        self.GroupNorm_0 = reference_norm(inputs)
        self.Conv_0 = Conv(inputs, outputs)
        self.Dense_0 = Dense(embedding, outputs)
        self.GroupNorm_1 = reference_norm(outputs)
        self.Conv_1 = Conv(outputs, outputs)
        self.Conv_2: Conv | None = None
        self.NIN_0: Projection | None = None
        self.packed = PackedMap()
        if block == "biggan" and (resample is not None or inputs != outputs):
            self.Conv_2 = Conv(inputs, outputs, size=1)
        elif block == "ddpm" and inputs != outputs:
            self.NIN_0 = Projection(inputs, outputs)

    def rows(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to every pixel behind either convolution, [N, outputs] each, from embeddings [N, E].

        Behind the first its bias and e, behind the second its bias and the shortcut's.
        """
        bias: Tensor = self.Conv_1.bias
        if self.Conv_2 is not None:
            bias = bias + self.Conv_2.bias
        if self.NIN_0 is not None:
            bias = bias + self.NIN_0.b
        return self.Dense_0(embedded) + self.Conv_0.bias, bias.to(embedded.dtype).expand(len(embedded), -1)

    def forward(self, x: Tensor, rows: Tensor, skip: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], rows [1 or B, 2 outputs]; skip [B, C', H, W] is concatenated to x where given."""
        if skip is None:
            h = self.GroupNorm_0.silu(x)
        else:
            x, h = self.GroupNorm_0.silu_of_concat(x, skip)
        h = _resample(h, self.resample, self.fir)
        h = self.Conv_0(h, rows.chunk(2, 1)[0])
        h = self.GroupNorm_1.silu(h)
        h = self.Conv_1(F.dropout(h, self.dropout, self.training))
        return torch.add(self._shortcut(x), h).mul_(RESIDUAL)

    def fused(self, x: fused.Activation, rows: Tensor, skip: Tensor | None = None) -> fused.Pending:
        """The same on the fused kernels, for frozen weights; the last sum is left to whoever reads it."""
        first, last = (row.contiguous() for row in rows.chunk(2, 1))
        if self.fir and self.resample is not None:
            h, s = fused.enter(x, skip, self.GroupNorm_0.settings())
            h, s = filtered(h, self.resample), filtered(s, self.resample)
            s = s if self.Conv_2 is None else self.Conv_2.without_bias(s)
        else:
            shortcut = fused.Shortcut(self.shortcut_matrix(), self.resample, self.packed)
            h, s = fused.enter(x, skip, self.GroupNorm_0.settings(), shortcut)
        h = self.Conv_0.without_bias(h)
        h = fused.norm_silu(h, self.GroupNorm_1.settings(), first)
        return fused.Pending(s, self.Conv_1.without_bias(h), last, RESIDUAL)

    def shortcut_matrix(self) -> Tensor | None:
        """What the shortcut multiplies every pixel with, [outputs, inputs]; None where it is the input itself."""
        if self.NIN_0 is not None:
            return self.NIN_0.W.t()
        return None if self.Conv_2 is None else self.Conv_2.weight[:, :, 0, 0]

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.NIN_0 is not None:
            return self.NIN_0.on_image(x)
        if self.Conv_2 is None:
            return x
        if self.resample == "up" and not self.fir:
            # A 1x1 convolution commutes with copying pixels, and costs a quarter before it.
            return _resample(self.Conv_2(x), "up")
        return self.Conv_2(_resample(x, self.resample, self.fir))


def _resample(x: Tensor, kind: str | None, fir: bool = False) -> Tensor:
    if fir and kind is not None:
        return filtered(x, kind)
    if kind == "down":
        return frozen.mean_down(x)
    if kind == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return x


class Attention(nn.Module):
    """Single-head self-attention over pixels; logits scaled by C^-1/2; the result is (x + h)/sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = reference_norm(channels)
        self.NIN_0 = Projection(channels, channels)
        self.NIN_1 = Projection(channels, channels)
        self.NIN_2 = Projection(channels, channels)
        self.NIN_3 = Projection(channels, channels)
        self._matrices, self._biases = Joined(), Joined()
        self._packed_first, self._packed_last = PackedMap(), PackedMap()

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(self.GroupNorm_0(x))
        q, k, v = self.NIN_0(tokens), self.NIN_1(tokens), self.NIN_2(tokens)
        h = self.NIN_3(frozen.attention(q, k, v))
        return torch.add(x, to_image(h, x.shape[2:])).mul_(RESIDUAL)

    def fused(self, x: fused.Activation) -> fused.Pending:
        """The same on the fused kernels, for frozen weights: one product makes q, k and v."""
        y, s = fused.enter(x, None, self.GroupNorm_0.settings(activate=False))
        matrix, bias = self._joined()
        tokens = to_tokens(fused.mapped(y, matrix.t(), bias, self._packed_first))
        h = to_image(fused.attention(tokens, heads=1, legacy=False), y.shape[2:])
        h = fused.mapped(h, self.NIN_3.W.t(), None, self._packed_last)
        return fused.Pending(s, h, self.NIN_3.b, RESIDUAL)

    def _joined(self) -> tuple[Tensor, Tensor]:
        """Matrix [C, 3 C] and bias [3 C] that make q, k and v side by side."""
        parts = (self.NIN_0, self.NIN_1, self.NIN_2)
        matrix = self._matrices.get(*(part.W for part in parts))
        return matrix, self._biases.get(*(part.b for part in parts))


class Downsample(nn.Module):
    """Stride-2 3x3 convolution after padding one row and column at bottom and right ('ddpm' blocks)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Conv_0 = Conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest doubling, then a 3x3 convolution ('ddpm' blocks)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Conv_0 = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(_resample(x, "up"))


class ResidualInput(nn.Module):
    """NCSN++'s encoder on the image itself: 3x3 convolution, then the filter at every second pixel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv_0 = Conv(inputs, outputs, padding=2)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(x [B, C, H, W] + reduced image [B, C', 2 H, 2 W])/sqrt(2)."""
        return torch.add(x, filtered(self.Conv_0(image), "down", padding=0)).mul_(RESIDUAL)


def reference_norm(channels: int) -> Norm:
    """GroupNorm as in the reference implementation: min(C // 4, 32) groups, eps 1e-6."""
    return Norm(channels, min(channels // 4, 32), 1e-6)


def sinusoid(labels: Tensor, width: int) -> Tensor:
    """Positional embedding [N, width] of real labels [N], float64: [sin, cos] of label * 10000^(-i/(half-1)).

    In float64 because a float32 product label * frequency loses digits (relative error up to 5e-7 in the
    network's output), and it is computed once per table.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64, device=labels.device) / (half - 1)
    angles = labels.double()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _fill(module: nn.Module, scale: float, generator: torch.Generator) -> None:
    """Fill a module's own weights: uniform with variance ``scale`` / mean(fan_in, fan_out), biases 0, norms 1, 0.

    The variance is multiplied by 0.1 in attention's projections, and is at least 1e-10 / mean(fan_in, fan_out).
    """
    if isinstance(module, Norm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Conv | Dense):
        outputs, inputs = module.weight.shape[:2]
        _uniform(module.weight, (inputs + outputs) * module.weight[0, 0].numel(), scale, generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Projection):
        _uniform(module.W, sum(module.W.shape), scale * 0.1, generator)
        nn.init.zeros_(module.b)
    elif isinstance(module, PointDense):
        _uniform(module.weight, sum(module.weight.shape[:2]), scale * 0.1, generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Table):
        _uniform(module.weight, module.weight.shape[1], scale, generator)


def fill_network(network: nn.Module, ends: list[nn.Module], seed: int, init_scale: float) -> None:
    """Fill every module in order; ``init_scale`` is the scale of ``ends``, the last layers of all branches."""
    generator = torch.Generator().manual_seed(seed)
    small = {id(module) for module in ends}
    for module in network.modules():
        _fill(module, init_scale if id(module) in small else 1.0, generator)


def _uniform(weight: Tensor, fans: int, scale: float, generator: torch.Generator) -> None:
    bound = math.sqrt(6 * max(scale, 1e-10) / fans)
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)
