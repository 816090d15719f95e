"""Small smooth float64-capable networks, and the plain unrolled loop everything is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpure.methods import Method
from fastpure.nets import Denoiser

SHAPE = (2, 8, 8)


class ToyNet(nn.Module):
    """Predicts noise from an image and a real label; smooth, so that finite differences agree."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        hidden = self.first(x) + torch.sin(label / 50)[:, None, None, None]
        return 0.5 * x + self.last(F.silu(hidden))


class ToyClassifier(nn.Module):
    """Smooth classifier with four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4 * 64, 4)

    def forward(self, u: Tensor) -> Tensor:
        return self.head(torch.tanh(2 * self.conv(u)).flatten(1))


def toy_denoiser(dtype: torch.dtype = torch.float64) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser.from_module(ToyNet().to(dtype).eval(), time_input="continuous", image_shape=SHAPE)


def toy_classifier(dtype: torch.dtype = torch.float64) -> ToyClassifier:
    torch.manual_seed(1)
    return ToyClassifier().to(dtype).eval()


def unrolled(
    method: Method,
    net: nn.Module,
    classifier: nn.Module | None,
    u: Tensor,
    forward: Tensor | None,
    steps: Tensor,
) -> Tensor:
    """The same purification written as one plain differentiable loop, straight from the formulas."""
    x = 2 * u - 1
    label = None
    register = torch.zeros_like(x)
    ahead, along = [] if forward is None else list(forward), list(steps)
    if method.guidance is not None and method.guidance.label == "input":
        label = classifier((x + 1) / 2).argmax(1)
    for row in method.table().rows:
        if row.forward:
            x = row.a * x + row.d * ahead.pop(0)
            continue
        e = net(x, x.new_full((len(x),), row.tau))
        if row.clip:
            e = (x - row.alpha * ((x - row.sigma * e) / row.alpha).clamp(-1, 1)) / row.sigma
        g = torch.zeros_like(x)
        if row.c or row.u:
            if not x.requires_grad:
                x.requires_grad_(True)
            logp = classifier((x + 1) / 2).log_softmax(1)
            y = logp.argmax(1) if label is None else label
            (g,) = torch.autograd.grad(logp.gather(1, y[:, None]).sum(), x, create_graph=True)
            if method.guidance.grad == "detached":
                g = g.detach()
        z = along.pop(0)
        x, register = (
            row.a * x + row.b * e + row.c * g + row.d * z + row.p * register,
            row.q * x + row.r * e + row.u * g + row.s * register,
        )
    out = (x + 1) / 2
    return out.clamp(0, 1) if method.clip_output else out
