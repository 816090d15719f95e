"""The denoiser as Karras et al. 2022 write it: D(x; sigma), the expected clean image, one noise level per image."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import mistake
from ..schedule import VP
from .denoiser import Denoiser


def clean_image(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """Expected clean image [B, C, H, W] given x = x0 + sigma noise with ``sigma`` [B] > 0.

    A network that is told the time gets that of the VP state with this noise level. Differentiable with respect to
    x as often as the network is.

    Raises:
        TypeError, ValueError: x has another shape or dtype than the denoiser wants, or that is in training mode.
    """
    if denoiser.network.training:
        raise ValueError(mistake("denoiser", "in evaluation mode", "training mode", "Call denoiser.eval()"))
    ratio = sigma.double()
    alpha = torch.rsqrt(1.0 + ratio.square())
    level, spread, scaled = (values.to(x.dtype).view(-1, 1, 1, 1) for values in (alpha, alpha * ratio, ratio))
    seen = x if denoiser.time_input == "sigma" else level * x
    seen = seen if denoiser.dtype is None else seen.to(denoiser.dtype)
    output = denoiser(seen, _labels(denoiser, ratio)).to(x.dtype)
    if denoiser.prediction == "x0":
        return output
    if denoiser.prediction == "v":
        return level * (level * x) - spread * output
    return x - scaled * output


def _labels(denoiser: Denoiser, ratio: Tensor) -> Tensor:
    floating = torch.float64 if denoiser.dtype == torch.float64 else torch.float32
    if denoiser.time_input == "sigma":
        return ratio.to(floating)
    vp = VP()
    slope, integral = vp.beta_max - vp.beta_min, torch.log1p(ratio.square())
    t = 2.0 * integral / (vp.beta_min + torch.sqrt(vp.beta_min**2 + 2.0 * slope * integral))
    if denoiser.time_input == "index":
        return torch.floor(1000.0 * t + 1e-6).to(torch.int64)
    return (999.0 * t).to(floating)
