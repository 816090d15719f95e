"""Proposition 1 of COUP on two Gaussians, with exact scores: what guidance does to label flips.

    python docs/two_gaussians.py docs/two_gaussians.png

What is computed, and how, stands in `fastpure.reproduce.gaussians`; `fastpure reproduce coup-figure3b` draws
more of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastpure.reproduce.gaussians import flip_probability


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
