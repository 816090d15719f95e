"""Randomised smoothing with keyed noise: votes of a classifier under Gaussian noise, and what they certify."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from ..errors import finite, mistake, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_normal
from ..kernels.keys import WORD_MAX
from ..progress import Progress
from ..purify.inputs import asking, check_range
from ..shown import Card, Shown, per_image, spread
from .base import as_base
from .bounds import certified_radius, check_alpha, check_sigma, lower_bound

NOISE = {"noise": f"domain {Domain.CERTIFICATE:d}, certification's own"}
"""Part of every file's identity. Files without it drew the noise of evaluations, and are not continued with another."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Certificates(Shown):
    """What is certified about each image.

    Fields:
        predicted: int64 [B], the smoothed classifier's class; -1 where it abstains.
        radius: float64 [B], L2 radius in [0, 1] units within which that class cannot change; 0 for abstentions.
        p_lower: float64 [B], lower bound of the class's probability under noise.
        votes: int64 [B], how many of the ``n`` noisy images had the class.
    """

    predicted: Tensor
    radius: Tensor
    p_lower: Tensor
    votes: Tensor

    def _shown(self) -> Card:
        columns = {
            "class": self.predicted,
            "radius": self.radius,
            "p_lower": self.p_lower,
            "votes": self.votes,
        }
        return Card(
            f"Certificates of {len(self.radius)} images",
            (
                ("radius", f"{spread(self.radius)} (L2, pixels in [0, 1])"),
                ("p_lower", spread(self.p_lower)),
                ("abstained", f"on {int((self.predicted < 0).sum())}"),
            ),
            grids=(per_image("images", tuple(columns), tuple(columns.values())),),
        )


@final
class Smoothing:
    """The classifier that takes the most probable class of ``model`` under Gaussian noise.

    The noise of an image is a pure function of (seed, sample id, draw), that of a model which draws some itself too:
    the result depends on neither batch size nor order. It is no evaluation's noise, whatever the seed. Draws 0..n0-1
    choose the class, draws n0..n0+n-1 estimate its probability.

    Args:
        model: a `SmoothedBase`, for instance a `OneShotClassifier`, or any module in evaluation mode from noisy
            images [B, C, H, W] in [0, 1] units (unclamped) to logits.
        sigma: deviation of the noise in [0, 1] units.
        seed: of the noise.
        batch_size: most noisy images in one call.
    """

    def __init__(self, model: nn.Module, sigma: float, seed: int = 0, batch_size: int = 512) -> None:
        self.model = as_base(model)
        self.sigma = check_sigma(sigma)
        if self.model.sigma is not None and self.model.sigma != self.sigma:
            raise ValueError(mistake("sigma", f"the model's own noise level, {self.model.sigma}", self.sigma))
        self.seed = whole("seed", seed, 0, 2**64 - 1)
        self.batch_size = whole("batch_size", batch_size, 1)

    def certify(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        *,
        progress: bool = False,
        seen: Callable[[int], None] | None = None,
    ) -> Certificates:
        """Certify images (Cohen et al. 2019, pseudocode CERTIFY). Each is wrong with probability <= alpha.

        Args:
            x: float32 [B, C, H, W] in [0, 1].
            sample_ids: names of the images for the noise; 0..B-1 if omitted.
            n0, n: draws that choose the class, and that estimate its probability.
            progress: show a bar.
            seen: told of so many more noisy images.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it.
        """
        whole("n0", n0, 1)
        whole("n", n, 1)
        check_alpha(alpha)
        if (n0 + n) * self.model.n_versions > WORD_MAX:
            most = f"at most {WORD_MAX // self.model.n_versions:,} draws in all, each of which takes "
            raise ValueError(mistake("n", f"{most}{self.model.n_versions} numbers", f"{n0 + n:,}"))
        ids = ids_of(x, sample_ids)
        with Progress(len(x) * (n0 + n), "noisy images", doing="certifying", shown=progress) as bar:
            told = seen or bar.step
            rows = [self._certify(x[i], int(ids[i]), n0, n, alpha, told) for i in range(len(x))]
        predicted, radius, p_lower, votes = zip(*rows, strict=True) if rows else ((), (), (), ())
        return Certificates(
            torch.tensor(predicted, dtype=torch.int64),
            torch.tensor(radius, dtype=torch.float64),
            torch.tensor(p_lower, dtype=torch.float64),
            torch.tensor(votes, dtype=torch.int64),
        )

    @torch.no_grad()
    def counts(
        self, image: Tensor, sample_id: int, draws: range, seen: Callable[[int], None] = lambda n: None
    ) -> Tensor:
        """How often each class wins over ``draws``: int64 [classes], for one image [C, H, W]; ``seen`` as above."""
        total: Tensor | None = None
        for noisy, keys in noisy_images(image, sample_id, draws, self.sigma, self.seed, self.batch_size):
            # What draws noise without being told its keys, a `DiffusionClassifier` for instance, must not see the noise
            # that the images carry: of another domain.
            with asking(keys.sample_ids, keys.draws, Domain.DEFENSE):
                scores = self.model(noisy, keys)
            finite(scores, keys.sample_ids, f"the classifier {self.model.label()}")
            part = torch.bincount(scores.argmax(1), minlength=scores.shape[1]).cpu()
            total = part if total is None else total + part
            seen(len(keys.draws))
        if total is None:
            raise ValueError(mistake("draws", "at least one draw", draws))
        return total

    def _certify(
        self, image: Tensor, sample_id: int, n0: int, n: int, alpha: float, seen: Callable[[int], None]
    ) -> tuple[int, float, float, int]:
        top = int(self.counts(image, sample_id, range(n0), seen).argmax())
        votes = int(self.counts(image, sample_id, range(n0, n0 + n), seen)[top])
        p_lower = lower_bound(votes, n, alpha)
        radius = certified_radius(p_lower, self.sigma)
        return (top if radius > 0 else -1), radius, p_lower, votes


def ids_of(x: Tensor, sample_ids: Tensor | list[int] | None) -> Tensor:
    """The names of the images x, float32 [B, C, H, W] in [0, 1]: ``sample_ids``, or 0..B-1; int64 [B].

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.dim() != 4:
        raise TypeError(mistake("x", "a float32 tensor [B, C, H, W]", f"{getattr(x, 'dtype', type(x))}"))
    if len(x):
        check_range(x)
    ids = torch.as_tensor(range(len(x)) if sample_ids is None else sample_ids)
    if tuple(ids.shape) != (len(x),):
        raise ValueError(mistake("sample_ids", f"one id per image, {len(x)}", list(ids.shape)))
    return ids


def noisy_images(
    image: Tensor, sample_id: int, draws: range, sigma: float, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, NoiseKeys]]:
    """``image`` [C, H, W] plus ``sigma`` times the noise of each draw, at most ``batch_size`` at a time, with keys."""
    for start in range(draws.start, draws.stop, batch_size):
        draw = torch.arange(start, min(start + batch_size, draws.stop))
        keys = NoiseKeys.make(seed, torch.full_like(draw, sample_id), draw, Domain.CERTIFICATE, image.device)
        yield image + sigma * philox_normal(keys, 0, Stream.FORWARD, tuple(image.shape)), keys
