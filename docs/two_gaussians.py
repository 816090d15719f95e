"""Proposition 1 of COUP on two Gaussians, with exact scores: what guidance does to label flips.

    python docs/two_gaussians.py docs/two_gaussians.png

Data are N(-0.5, 0.1^2) and N(0.5, 0.1^2) with equal weight on a line. A point of the right-hand class that an
attack has pushed close to the boundary is purified; it flips if it ends on the left. Guidance by a clean
classifier pushes it away from the boundary; a classifier with a rough gradient undoes that again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.nets.oracle import GaussianMixture

MEAN, STD, START = 0.5, 0.1, 0.12


class LineClassifier(nn.Module):
    """Bayes classifier of the two Gaussians plus ``noise`` times a random rough function of the position."""

    def __init__(self, noise: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.noise = noise
        self.register_buffer("frequency", 20 + 60 * torch.rand(12, generator=generator))
        self.register_buffer("phase", 6.2832 * torch.rand(12, generator=generator))

    def forward(self, u: Tensor) -> Tensor:
        x = (2 * u - 1).flatten(1)
        rough = torch.sin(self.frequency * x + self.phase).mean(1, keepdim=True)
        evidence = 2 * MEAN / (STD**2 + 0.1) * x + self.noise * rough
        return torch.cat([-evidence, evidence], 1) / 2


def flip_probability(scale: float, noise: float = 0.0, n: int = 4096) -> float:
    """Share of ``n`` purifications of one point at ``START`` that end in the other class.

    Averaged over 32 random classifiers, since any one rough function may happen to push the right way.
    """
    denoiser = fp.Denoiser.from_module(
        GaussianMixture(torch.tensor([[-MEAN], [MEAN]]), STD), image_shape=(1, 1, 1)
    )
    u = torch.full((n // 32, 1, 1, 1), (START + 1) / 2)
    flips = 0.0
    for seed in range(32):
        classifier = LineClassifier(noise, seed).eval()
        method = fp.methods.coup(classifier, t=0.1, dt=2e-3, scale=scale, clip_output=False)
        with torch.no_grad():
            purified = fp.Purifier(denoiser, method, seed=seed)(u)
        flips += float((purified < 0.5).float().mean())
    return flips / 32


def main(path: Path) -> None:
    """Draw flip probability against scale (clean classifier) and against classifier noise."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    scales = [0.0, 0.5, 1.0, 2.0, 4.0]
    left.plot(scales, [flip_probability(scale) for scale in scales], "o-")
    left.set(
        xlabel="guidance scale", ylabel="label-flip probability", title="clean classifier", ylim=(0, None)
    )
    noises = [0.0, 2.0, 4.0, 8.0, 16.0]
    right.plot(noises, [flip_probability(2.0, noise) for noise in noises], "o-", label="scale 2")
    right.axhline(flip_probability(0.0), color="gray", linestyle="--", label="no guidance")
    right.set(xlabel="classifier noise", title="noisy classifier", ylim=(0, None))
    right.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "two_gaussians.png"))
