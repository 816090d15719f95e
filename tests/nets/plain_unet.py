"""U-Nets as users write them, in nothing but torch: the styles of the DDPM and guided-diffusion code bases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Block(nn.Module):
    """Residual block; ``guided``: resampled inside, and scaled and shifted by the time, which is added otherwise."""

    def __init__(self, inputs: int, outputs: int, guided: bool, resample: str | None = None) -> None:
        super().__init__()
        self.guided, self.resample = guided, resample
        self.norm1, self.norm2 = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
        self.conv1, self.conv2 = (
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.time = nn.Linear(32, 2 * outputs if guided else outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.act = nn.SiLU() if guided else swish

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return nn.AvgPool2d(2)(x)
        return x if self.resample is None else F.interpolate(x, scale_factor=2, mode="nearest")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, t = self.conv1(self.resampled(self.act(self.norm1(x)))), self.time(t)[:, :, None, None]
        if self.guided:
            scale, shift = t.chunk(2, dim=1)
            h = self.act(self.norm2(h) * (1 + scale) + shift)
        else:
            h = self.act(self.norm2(h + t))
        return self.skip(self.resampled(x)) + self.conv2(h)


class Attention(nn.Module):
    """Over pixels; ``guided``: matrices written out, projections as convolutions of length 1, or else torch's fused."""

    def __init__(self, channels: int, guided: bool) -> None:
        super().__init__()
        self.guided = guided
        self.norm = nn.GroupNorm(4, channels)
        make = (lambda i, o: nn.Conv1d(i, o, 1)) if guided else nn.Linear
        self.qkv, self.out = make(channels, 3 * channels), make(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2)
        if self.guided:
            q, k, v = self.qkv(tokens).chunk(3, dim=1)
            weights = torch.einsum("bct,bcs->bts", q * x.shape[1] ** -0.25, k * x.shape[1] ** -0.25).softmax(
                -1
            )
            return x + self.out(torch.einsum("bts,bcs->bct", weights, v)).view_as(x)
        q, k, v = self.qkv(tokens.mT)[:, None].chunk(3, dim=-1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v)[:, 0]).mT.reshape(x.shape)


class PlainUNet(nn.Module):
    """Two levels, two blocks each, attention on the lower one; called like any denoiser, (x, labels) -> noise."""

    def __init__(self, width: int = 16, channels: int = 3, guided: bool = False) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, resample: str | None = None) -> Block:
            return Block(inputs, outputs, guided, resample)

        wide = 2 * width
        self.time = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.fine = nn.ModuleList([block(width, width), block(width, width)])
        self.down = block(width, width, "down") if guided else nn.Conv2d(width, width, 3, 2, 1)
        self.coarse = nn.ModuleList([block(width, wide), block(wide, wide)])
        self.attention = Attention(wide, guided)
        self.uncoarse = nn.ModuleList([block(2 * wide, wide), block(wide + wide, wide)])
        self.up = block(wide, wide, "up") if guided else nn.ConvTranspose2d(wide, wide, 2, 2)
        self.unfine = nn.ModuleList([block(wide + width, width), block(2 * width, width)])
        self.last = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        t = self.time(labels.to(x.dtype)[:, None] / 1000)
        h, kept = self.first(x), []
        for block in self.fine:
            kept.append(h := block(h, t))
        h = self.down(h, t) if isinstance(self.down, Block) else self.down(h)
        for block in self.coarse:
            kept.append(h := block(h, t))
        h = self.attention(h)
        for block in self.uncoarse:
            h = block(torch.cat([h, kept.pop()], 1), t)
        h = self.up(h, t) if isinstance(self.up, Block) else self.up(h)
        for block in self.unfine:
            h = block(torch.cat([h, kept.pop()], 1), t)
        return self.last(h)


def plain_unet(guided: bool = False, dtype: torch.dtype = torch.float32, **sizes: int) -> PlainUNet:
    """With random weights, frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PlainUNet(guided=guided, **sizes)
        for part in network.modules():
            if isinstance(part, nn.GroupNorm):
                nn.init.normal_(part.weight, 1, 0.2)
                nn.init.normal_(part.bias, 0, 0.2)
    return network.to(dtype).requires_grad_(False).eval()
