"""COUP's proposition 1 on two Gaussians, with exact scores: what guidance does to label flips.

Data are N(-0.5, 0.1^2) and N(0.5, 0.1^2) with equal weight on a line. A point of the right-hand class that an
attack has pushed close to the boundary is purified; it flips if it ends on the left. Guidance by a clean
classifier pushes it away from the boundary; a classifier with a rough gradient undoes that again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from ..intervals import wilson
from ..methods import coup
from ..nets import Denoiser
from ..nets.oracle import GaussianMixture
from ..purify import Purifier
from ..report.charts import Chart, Series, picture
from .experiment import Drawing
from .made import Made

MEAN, STD, START = 0.5, 0.1, 0.12
CLASSIFIERS = 32
"""Random classifiers that are averaged over, since any one rough function may happen to push the right way."""


class LineClassifier(nn.Module):
    """Bayes classifier of the two Gaussians plus ``noise`` times a random rough function of the position."""

    frequency: Tensor
    phase: Tensor

    def __init__(self, noise: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.noise = noise
        self.register_buffer("frequency", 20 + 60 * torch.rand(12, generator=generator))
        self.register_buffer("phase", 6.2832 * torch.rand(12, generator=generator))

    def forward(self, u: Tensor) -> Tensor:
        """Logits [B, 2] of points [B, 1, 1, 1] in [0, 1]."""
        x = (2 * u - 1).flatten(1)
        rough = torch.sin(self.frequency * x + self.phase).mean(1, keepdim=True)
        evidence = 2 * MEAN / (STD**2 + 0.1) * x + self.noise * rough
        return torch.cat([-evidence, evidence], 1) / 2


def flip_probability(scale: float, noise: float = 0.0, n: int = 4096) -> float:
    """Share of ``n`` purifications of one point at ``START`` that end in the other class."""
    denoiser = Denoiser.from_module(
        GaussianMixture(torch.tensor([[-MEAN], [MEAN]]), STD), image_shape=(1, 1, 1)
    )
    u = torch.full((n // CLASSIFIERS, 1, 1, 1), (START + 1) / 2)
    flips = 0.0
    for seed in range(CLASSIFIERS):
        classifier = LineClassifier(noise, seed).eval()
        method = coup(classifier, t=0.1, dt=2e-3, scale=scale, clip_output=False)
        with torch.no_grad():
            purified = Purifier(denoiser, method, seed=seed)(u)
        flips += float((purified < 0.5).float().mean())
    return flips / CLASSIFIERS


@final
@dataclass(frozen=True)
class Flips(Drawing):
    """Probability of a label flip against the guidance scale, a line per noise of the classifier; closed form.

    Attributes:
        scales: guidance scales.
        noises: of the classifier.
        points: purifications of each.
    """

    name: str
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    noises: tuple[float, ...] = (0.0, 2.0, 4.0, 8.0, 16.0)
    points: int = 4096

    def draw(self, made: Made) -> Mapping[str, bytes]:
        """See `Drawing.draw`."""
        series = []
        for style, noise in enumerate(self.noises):
            made.say(f"classifier noise {noise:g}")
            values = []
            for scale in self.scales:
                what = {"kind": "flips", "scale": scale, "noise": noise, "points": self.points}
                found = made.kept.arrays(what, lambda s=scale, n=noise: {"p": np.array(self._value(s, n))})  # type: ignore[misc]
                values.append(wilson(float(found["p"]) * self.points, self.points))
            y, low, high = (
                tuple(100 * getattr(v, part) for v in values) for part in ("estimate", "low", "high")
            )
            series.append(Series(f"classifier noise {noise:g}", self.scales, y, low, high, style))
        chart = Chart(
            self.name,
            "Label flips against the guidance scale, two Gaussians",
            f"Exact scores, no network and no images. {self.points} purifications each, averaged over {CLASSIFIERS} "
            "random classifiers of that noise; 95 % Wilson intervals of the purifications.",
            (),
            tuple(series),
            x_label="guidance scale",
            y_label="label-flip probability, %",
        )
        return {f"{self.name}.svg": picture([chart])}

    def _value(self, scale: float, noise: float) -> float:
        return flip_probability(scale, noise, self.points)
