"""Networks whose answer is an energy, low where images are likely (for purification by Langevin dynamics)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import listed, mistake, whole
from .base import checked_shape

WIDEST, DEEPEST = 65536, 8
"""Sizes beyond which a configuration is a mistake or an attack on memory and time, not a network."""


@final
@dataclass(frozen=True)
class EnergyConfig:
    """An ``EnergyNet``.

    Attributes:
        image_shape: (C, H, W); each width after the first halves height and width.
        widths: channels of the convolutions.
    """

    image_shape: tuple[int, int, int]
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", checked_shape(self.image_shape))
        if not isinstance(self.widths, tuple | list) or not 1 <= len(self.widths) <= DEEPEST:
            raise ValueError(mistake("widths", f"1 to {DEEPEST} whole numbers", repr(self.widths)))
        object.__setattr__(self, "widths", tuple(whole("widths", n, 1, WIDEST) for n in self.widths))
        halved = 2 ** (len(self.widths) - 1)
        if any(whole("image_shape", size, 1, 8192) % halved for size in self.image_shape[1:]):
            raise ValueError(mistake("image_shape", f"with sides divisible by {halved}", self.image_shape))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that json can hold."""
        return {name: list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EnergyConfig:
        """Inverse of ``to_dict``. Raises ValueError for fields that are unknown or missing."""
        known = {field.name for field in fields(cls)}
        if known != set(values):
            raise ValueError(mistake("config", f"of the fields {listed(sorted(known))}", sorted(values)))
        return cls(**{name: tuple(value) for name, value in values.items()})


@final
class EnergyNet(nn.Module):
    """U(x): images [B, C, H, W] in [-1, 1] to energies [B]. Convolutions and SiLU: smooth, without normalisation."""

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.image_shape
        halved = 2 ** (len(config.widths) - 1)
        self.first = nn.Conv2d(channels, config.widths[0], 3, padding=1)
        pairs = zip(config.widths, config.widths[1:], strict=False)
        self.halving = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.last = nn.Linear(config.widths[-1] * (height // halved) * (width // halved), 1)

    def forward(self, x: Tensor) -> Tensor:
        """The energies [B]; an image is likely in proportion to exp(-U)."""
        hidden = F.silu(self.first(x))
        for convolution in self.halving:
            hidden = F.silu(convolution(hidden))
        return self.last(hidden.flatten(1))[:, 0]

    def initialise(self, seed: int) -> EnergyNet:
        """Random weights from ``seed``; the global random state is neither read nor changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(whole("seed", seed))
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.reset_parameters()
        return self


@final
class HillEnergyNet(nn.Module):
    """U(x) of the networks published by Hill et al. 2021: images [B, C, 32, 32] in [-1, 1] to energies [B].

    There a Langevin step is x - f'(x) + `STEP` z, without a factor, so that what their network f answers is
    U `STEP`^2 / 2. Here it is divided by that: ``fp.methods.ebm_langevin`` with tau = `STEP` takes their steps.

    It is linear between the kinks of its activations: U has no curvature there, and the exact gradient of a
    purification is the identity.

    Args:
        channels: of the images.
        width: of the first convolution; the others have 2, 4 and 8 times as many channels.
    """

    STEP: Final = 0.01
    """Their ``langevin_eps``, of training and of purification, for all three data sets."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.05)]
        for inputs in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(inputs, 2 * inputs, 4, stride=2, padding=1), nn.LeakyReLU(0.05)]
        self.f = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        """The energies [B]. Raises ValueError for images that are not 32 x 32."""
        if x.shape[-2:] != (32, 32):
            raise ValueError(mistake("x", "images of 32 x 32", f"{x.shape[-2]} x {x.shape[-1]}"))
        return self.f(x).flatten(1)[:, 0] / (0.5 * self.STEP**2)


CONFIGS = {"energy-digits": EnergyConfig((1, 8, 8), (12, 20, 28))}
"""Configurations by name."""
