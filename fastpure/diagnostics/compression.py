"""How much a purifier shrinks a perturbation, |P(x + d) - P(x)| / |d|: robustness goes along with it (2505.22839)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..attacks.gradient import pairs
from ..errors import one_of, whole
from ..kernels import Domain
from ..progress import Progress
from ..purify import Purifier
from ..shown import Card, Shown, per_image, spread
from .checks import check_ids, check_images, check_purifier, norms

NOISES = ("fixed", "fresh")
"""Both images under the same noise, or each under its own."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Compression(Shown):
    """How much was left of perturbations.

    Attributes:
        ratio: float64 [B, draws], |P(x_adv) - P(x)| / |x_adv - x| in L2; below 1 is shrunk. NaN where x_adv is x.
        distance: float64 [B], |x_adv - x| in [0, 1] units.
        noise: "fixed" or "fresh", see ``compression``.
    """

    ratio: Tensor
    distance: Tensor
    noise: str

    @property
    def mean(self) -> Tensor:
        """Mean over the draws, float64 [B]."""
        return self.ratio.mean(1)

    def _shown(self) -> Card:
        n, draws = self.ratio.shape
        return Card(
            f"Compression of {n} images, {draws} {'draws' if draws > 1 else 'draw'}, {self.noise} noise",
            (("ratio", spread(self.mean)), ("distance", spread(self.distance))),
            grids=(per_image("images", ("ratio", "distance"), (self.mean, self.distance)),),
        )

    def __str__(self) -> str:
        known = self.mean[~self.mean.isnan()]
        draws = f"{self.ratio.shape[1]} draws" if self.ratio.shape[1] > 1 else "1 draw"
        value = f"{float(known.mean()):.3f}" if len(known) else "not known"
        return f"compression {value} (mean over {len(known)} images, {draws}, {self.noise} noise)"


@torch.no_grad()
def compression(
    purifier: Purifier,
    x: Tensor,
    x_adv: Tensor,
    sample_ids: Tensor | list[int] | None = None,
    *,
    draws: int = 1,
    noise: str = "fixed",
    batch_size: int = 64,
    progress: bool = False,
) -> Compression:
    """What the purifier leaves of the perturbation of each image.

    Args:
        purifier: what purifies.
        x: originals [B, C, H, W] in [0, 1], at least one.
        x_adv: the same images perturbed.
        sample_ids: names of the images for the noise; 0..B-1 if omitted.
        draws: realisations of the noise.
        noise: "fixed": x and x_adv see the same noise, draw 0, 1, ... of the deployed defence. "fresh": x sees draws 0,
            2, ... and x_adv 1, 3, ...; the difference of the noise is then part of the ratio.
        batch_size: most (image, draw) pairs in one pass.
        progress: show a bar.

    Raises:
        TypeError, ValueError: not a purifier, or no such images; the message names the argument.
    """
    check_purifier(purifier)
    check_images(x)
    check_images(x_adv, "x_adv", like=x)
    ids = check_ids(sample_ids, x)
    whole("draws", draws, 1, 2**31)
    apart = one_of("noise", noise, NOISES) == "fresh"
    whole("batch_size", batch_size, 1)
    ratio = torch.empty(len(x) * draws, dtype=torch.float64, device=x.device)
    with Progress(len(x) * draws, "pairs", doing="purifying", shown=progress) as bar:
        for part, image, draw in pairs(len(x), range(draws), batch_size, x.device):
            first = 2 * draw if apart else draw
            clean = purifier(x[image], ids[image], first, domain=Domain.DEFENSE)
            attacked = purifier(x_adv[image], ids[image], first + apart, domain=Domain.DEFENSE)
            ratio[part] = shrunk(x[image], x_adv[image], clean, attacked)
            bar.step(len(image))
    return Compression(ratio.view(len(x), draws), norms(x_adv.double() - x.double()), noise)


def shrunk(x: Tensor, x_adv: Tensor, purified: Tensor, purified_adv: Tensor) -> Tensor:
    """|purified_adv - purified| / |x_adv - x| of images [B, C, H, W]; float64 [B], NaN where x_adv is x."""
    before, after = (norms(b.double() - a.double()) for a, b in ((x, x_adv), (purified, purified_adv)))
    return torch.where(before > 0, after / before, torch.nan)
