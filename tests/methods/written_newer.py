"""The newer methods written out as plain loops, as ``written_out`` has the others."""

from __future__ import annotations

import math

import numpy as np
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


def frequencies_tied(image: Tensor, guide: Tensor, amplitude: float, phase: float, delta: float) -> Tensor:
    """Coefficient by coefficient on the whole shifted plane, with angles."""
    found, wanted = (torch.fft.fftshift(torch.fft.fft2(x), (2, 3)) for x in (image, guide))
    size, turn, other = found.abs(), found.angle(), wanted.angle()
    height, width = image.shape[2:]
    rows, columns = np.meshgrid(np.arange(height) - height // 2, np.arange(width) - width // 2, indexing="ij")
    radius = torch.tensor(np.hypot(rows, columns))
    size = torch.where(radius <= amplitude, wanted.abs(), size)
    gap = torch.remainder(turn - other + math.pi, 2 * math.pi) - math.pi
    turn = torch.where(radius <= phase, other + gap.clamp(-delta, delta), turn)
    return torch.fft.ifft2(torch.fft.ifftshift(torch.polar(size, turn), (2, 3))).real


def freqpure(
    eps, u, noise, indices, radii, delta: float, eta: float, implied: bool, detach: str = ""
) -> Tensor:
    x_in = 2 * u - 1
    x = diffuse(x_in, ABAR[indices[0]], noise["forward"])
    # The network is asked at the continuous time that has this noise level, as it is for other methods' draws.
    ratio = math.sqrt(1 / ABAR[indices[0]] - 1)
    t = (math.sqrt(0.01 + 39.8 * math.log1p(ratio**2)) - 0.1) / 19.9
    alpha = 1 / math.sqrt(1 + ratio**2)
    noised = x_in + ratio * noise["guidance"][0]
    guide = noised - ratio * eps(alpha * noised, 999 * t)
    guide = guide.detach() if detach else guide
    for k, i in enumerate(indices):
        now, after = ABAR[i], ABAR[indices[k + 1]] if k + 1 < len(indices) else 1.0
        e = eps(x, i)
        x0 = (x - math.sqrt(1 - now) * e) / math.sqrt(now)
        tied = frequencies_tied(x0, guide, *radii, delta)
        tied = x0 + (tied - x0).detach() if detach == "detached" else tied
        e = (x - math.sqrt(now) * tied) / math.sqrt(1 - now) if implied else e
        spread = eta * math.sqrt((1 - after) / (1 - now)) * math.sqrt(1 - now / after)
        x = math.sqrt(after) * tied + math.sqrt(max(1 - after - spread**2, 0.0)) * e
        x = x + spread * noise["steps"][k]
    return (x + 1) / 2


def attention(network, names, u: Tensor, threshold: float, sharpness: float | None) -> Tensor:
    """The largest mask over layers of a plain ``Sequential``, walked by hand."""
    masks, x = [], u
    for name, layer in network.named_children():
        x = layer(x)
        if name not in names:
            continue
        heat = (x * x).sum(1, keepdim=True)
        heat = torch.stack([(h - h.min()) / (h.max() - h.min()) for h in heat])
        heat = F.interpolate(heat, u.shape[2:], mode="bilinear")
        gap = heat - threshold
        masks.append((gap >= 0).to(u.dtype) if sharpness is None else torch.sigmoid(sharpness * gap))
    return torch.stack(masks).max(0).values


def heterogeneous(eps, kept, u, noise, indices, rest: int, repeats: int, detach: str = "") -> Tensor:
    x_in = 2 * u - 1
    x = diffuse(x_in, ABAR[indices[0]], noise["forward"])
    if detach in ("mask_constant", "no_guide_path", "detached"):
        kept = kept.detach()
    x_in = x_in.detach() if detach == "no_guide_path" else x_in
    k = 0
    for i, j in zip(indices, [*indices[1:], -1], strict=True):
        turns = repeats if j >= rest else 1
        for turn in range(turns):
            x = eta_step(eps, x, ABAR[i], ABAR[j] if j >= 0 else 1.0, i, 0.0, True, None)
            k += 1
            if j >= rest:
                mixed = kept * x + (1 - kept) * diffuse(x_in, ABAR[j], noise["guidance"][k])
                x = x + (mixed - x).detach() if detach == "detached" else mixed
                k += 1
            if turn + 1 < turns:
                share = ABAR[i] / ABAR[j]
                x = math.sqrt(share) * x + math.sqrt(1 - share) * noise["steps"][k]
                k += 1
    return (x + 1) / 2
