"""Certified radii of a diffusion classifier's posterior, averaged over Gaussian noise (NRDC)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..errors import finite, mistake, whole
from ..kernels import Domain
from ..progress import Progress
from ..purify import NoisedDiffusionClassifier
from ..purify.inputs import check_range
from ..shown import Card, Shown, per_image, spread
from .bounds import check_alpha


@final
@dataclass(frozen=True, eq=False, repr=False)
class PosteriorCertificates(Shown):
    """What is certified about each image.

    Fields:
        predicted: int64 [B], the class with the largest mean posterior; -1 where it abstains.
        radius: float64 [B], L2 radius in [0, 1] units within which that class cannot change; 0 for abstentions.
        p_lower: float64 [B], lower bound of that class's mean posterior.
        p_upper: float64 [B], upper bound of every other class's.
    """

    predicted: Tensor
    radius: Tensor
    p_lower: Tensor
    p_upper: Tensor

    def _shown(self) -> Card:
        columns = {
            "class": self.predicted,
            "radius": self.radius,
            "p_lower": self.p_lower,
            "p_upper": self.p_upper,
        }
        return Card(
            f"PosteriorCertificates of {len(self.radius)} images",
            (
                ("radius", f"{spread(self.radius)} (L2, pixels in [0, 1])"),
                ("p_lower", spread(self.p_lower)),
                ("p_upper", f"{spread(self.p_upper)} (of any other class)"),
                ("abstained", f"on {int((self.predicted < 0).sum())}"),
            ),
            grids=(per_image("images", tuple(columns), tuple(columns.values())),),
        )


@final
class PosteriorSmoothing:
    """The classifier that takes the class of the largest mean posterior under Gaussian noise of deviation sigma.

    Sound for any model whose answer lies in [0, 1]: for g = E f(x + sigma n), sigma Phi^-1(g) has the Lipschitz
    constant 1 in L2 (Salman et al. 2019, lemma 2), so the class A stays ahead of every B within
    (sigma / 2) (Phi^-1(g_A) - Phi^-1(g_B)). f may draw noise of its own, fresh for every n: its mean over that noise is
    such a function too. Nothing is assumed of the diffusion model. The paper's own bound, from a Lipschitz constant of
    the diffusion classifier itself, is another one and is not here.

    g is not known but estimated: the bounds are Maurer and Pontil's (2009) empirical Bernstein bounds, each with error
    probability alpha / classes, so that all hold at once with probability 1 - alpha.

    Args:
        classifier: whose model, sigma and seed are used. ``n_noised`` plays no part: the certificate is that of the
            mean over all noises, of which ``classifier`` itself takes few.
        batch_size: most noisy images at a time; no part of the result.
    """

    def __init__(self, classifier: NoisedDiffusionClassifier, batch_size: int = 64) -> None:
        if not isinstance(classifier, NoisedDiffusionClassifier):
            expected = "a fastpure.NoisedDiffusionClassifier"
            raise TypeError(mistake("classifier", expected, type(classifier).__name__))
        self.classifier = classifier
        self.batch_size = whole("batch_size", batch_size, 1)

    def certify(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        n0: int = 32,
        n: int = 1024,
        alpha: float = 0.001,
        *,
        progress: bool = False,
    ) -> PosteriorCertificates:
        """Certify images; each certificate is wrong with probability <= alpha.

        Args:
            x: [B, C, H, W] in [0, 1], of the model's dtype.
            sample_ids: names of the images for the noise; 0..B-1 if omitted.
            n0, n: noisy images that choose the class, and that bound the posteriors (draws 0..n0-1, and n0..n0+n-1, of
                noise that no evaluation sees); each costs ``model.network_calls``.
            progress: show a bar.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it.
        """
        whole("n0", n0, 1)
        whole("n", n, 2)
        check_alpha(alpha)
        if len(x):
            check_range(x)
        ids = torch.as_tensor(range(len(x)) if sample_ids is None else sample_ids)
        if tuple(ids.shape) != (len(x),):
            raise ValueError(mistake("sample_ids", f"one id per image, {len(x)}", list(ids.shape)))
        with Progress(len(x) * (n0 + n), "noisy images", doing="certifying", shown=progress) as bar:
            rows = [self._certify(x[i], int(ids[i]), n0, n, alpha, bar) for i in range(len(x))]
        predicted, *columns = zip(*rows, strict=True) if rows else ((),) * 4
        numbers = (torch.tensor(column, dtype=torch.float64) for column in columns)
        return PosteriorCertificates(torch.tensor(predicted, dtype=torch.int64), *numbers)

    @torch.no_grad()
    def posteriors(self, image: Tensor, sample_id: int, draws: range, bar: Progress | None = None) -> Tensor:
        """Posteriors float64 [draws, classes] of one image [C, H, W] under the noise of each draw."""
        parts = []
        for start in range(draws.start, draws.stop, self.batch_size):
            draw = torch.arange(start, min(start + self.batch_size, draws.stop), device=image.device)
            ids, many = torch.full_like(draw, sample_id), image.expand(len(draw), *image.shape)
            found = self.classifier.log_posteriors(many, ids, draw, Domain.CERTIFICATE)
            parts.append(finite(found, ids, "the diffusion classifier").double().exp().cpu())
            if bar is not None:
                bar.step(len(draw))
        return torch.cat(parts)

    def _certify(
        self, image: Tensor, sample_id: int, n0: int, n: int, alpha: float, bar: Progress
    ) -> tuple[int, float, float, float]:
        top = int(self.posteriors(image, sample_id, range(n0), bar).mean(0).argmax())
        p = self.posteriors(image, sample_id, range(n0, n0 + n), bar)
        width = bernstein(p, alpha / p.shape[1])
        lower = max(float(p.mean(0)[top] - width[top]), 0.0)
        others = torch.arange(p.shape[1]) != top
        # They add up to one: what is sure of the class is lost to all others.
        upper = min(float((p.mean(0) + width)[others].max()) if bool(others.any()) else 0.0, 1.0 - lower)
        radius = posterior_radius(lower, upper, self.classifier.sigma)
        return (top if radius > 0 else -1), radius, lower, upper


def bernstein(values: Tensor, alpha: float) -> Tensor:
    """How far the mean of independent ``values`` [n, ...] in [0, 1] may be from its expectation on one side, [...].

    Maurer and Pontil (2009), theorem 4: sqrt(2 V ln(2 / alpha) / n) + 7 ln(2 / alpha) / (3 (n - 1)), V the sample
    variance; wrong with probability <= alpha.
    """
    n, share = len(values), math.log(2.0 / alpha)
    return (2.0 * values.var(0) * share / n).sqrt() + 7.0 * share / (3.0 * (n - 1))


def posterior_radius(p_lower: float, p_upper: float, sigma: float) -> float:
    """(sigma / 2) (Phi^-1(p_lower) - Phi^-1(p_upper)), in the units of ``sigma``; 0 where that is not positive."""
    from scipy.special import ndtri

    if not p_lower > p_upper:
        return 0.0
    # A posterior of exactly one, by rounding, certifies no more than float64 can tell from one.
    low, high = (min(max(p, 1e-16), 1.0 - 1e-16) for p in (p_lower, p_upper))
    return 0.5 * sigma * float(ndtri(low) - ndtri(high))
