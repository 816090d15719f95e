"""The newer methods written out as plain loops, as ``written_out`` has the others."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.written_out import ABAR, clean, diffuse, eta_step, slope_of


def dps(eps, u, noise, indices, scale: float, norm: str, eta: float, clip: bool, detach: str = "") -> Tensor:
    """DDIM's family, moved against the gradient of the distance between prediction and input."""
    wanted = 2 * u - 1
    x = diffuse(wanted, ABAR[indices[0]], noise["forward"])
    wanted = wanted.detach() if detach else wanted
    for k, i in enumerate(indices):
        after = ABAR[indices[k + 1]] if k + 1 < len(indices) else 1.0
        r = (clean(eps, x, ABAR[i], i, False) - wanted).flatten(1)
        distance = {"l2": r.norm(dim=1), "squared": (r * r).sum(1), "l1": r.abs().sum(1)}[norm]
        g = slope_of(distance.sum(), x)
        g = g.detach() if detach == "detached" else g
        x = eta_step(eps, x, ABAR[i], after, i, eta, clip, noise["steps"][k]) - scale * g
    return (x + 1) / 2


def mimic(eps, u, noise, indices, inside, scale: float, width: float) -> Tensor:
    """From noise alone; signs have the derivative of r / sqrt(r^2 + width^2)."""
    wanted = 2 * u - 1
    x = 0.0 * wanted + noise["forward"]

    def sign(r):
        soft = r / torch.sqrt(r * r + width * width)
        return torch.sign(r).detach() + soft - soft.detach()

    for k, i in enumerate(indices):
        after = ABAR[indices[k + 1]] if k + 1 < len(indices) else 1.0
        moved = eta_step(eps, x, ABAR[i], after, i, 1.0, True, noise["steps"][k])
        if inside[k]:
            x0 = clean(eps, x, ABAR[i], i, False)
            r = x0 - wanted
            coarse = F.avg_pool2d(r, 4)
            n, few = r[0].numel(), coarse[0].numel()
            # The objective whose gradient by r is the mean of signs, of both resolutions.
            w = sign(r) / n + F.interpolate(sign(coarse), scale_factor=4, mode="nearest") / 16 / few
            (g,) = torch.autograd.grad(x0, x, w, create_graph=True)
            moved = moved - scale * math.sqrt(ABAR[i]) * g
        x = moved
    return (x + 1) / 2
