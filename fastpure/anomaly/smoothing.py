"""What smoothing a score with Gaussian noise certifies: decisions with a radius, bounds of a percentile, an AUC.

The certified half of AdvRAD (Cao et al. 2024) is known to us from its abstract only. This is how we do it: votes as in
Cohen et al. 2019, percentiles as in Chiang et al. 2020 ("Detection as Regression").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..certify import Certificates, certified_radius, lower_bound, percentile_ranks
from ..certify.bounds import check_alpha, check_radius, shifted_level
from ..certify.records import RowFile, append_row
from ..certify.smoothing import NOISE, ids_of, noisy_images
from ..errors import finite, mistake, positive, whole
from ..shown import Card, Shown, per_image, spread


def _scores(cells: list[str]) -> tuple[int, Tensor]:
    sample_id, scores = cells
    return int(sample_id), torch.tensor([float(word) for word in scores.split(" ")])


SCORES = RowFile("# fastpure anomaly scores ", ["sample_id", "scores"], _scores)
"""A row per image: its id and the scores of all draws, in their order, separated by spaces."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class ScoreCertificates(Shown):
    """Scores of images under noise of deviation ``sigma``, and what follows from them for changes of the images.

    Each statement about an image, one decision or one bound, is wrong with probability at most ``alpha``, which is
    that of the draws. All radii are L2, in [0, 1] units.

    Fields:
        sample_ids: int64 [B].
        chosen: float32 [B, n0], scores of the draws that choose a decision.
        scores: float32 [B, n], scores of the draws that estimate.
        sigma: of the noise.
        alpha: error probability of each statement.
    """

    sample_ids: Tensor
    chosen: Tensor
    scores: Tensor
    sigma: float
    alpha: float

    def _shown(self) -> Card:
        n, draws = self.scores.shape
        means = self.scores.double().mean(1)
        return Card(
            f"ScoreCertificates of {n} images",
            (
                ("score", spread(self.scores)),
                ("draws", f"{self.chosen.shape[1]} that choose, {draws} that estimate"),
                (
                    "noise",
                    f"sigma {self.sigma:g}; each statement wrong with probability at most {self.alpha:g}",
                ),
            ),
            grids=(per_image("images", ("sample id", "mean score"), (self.sample_ids, means)),),
        )

    def decide(self, threshold: float) -> Certificates:
        """Whether each image is anomalous: whether most of its noisy images score above ``threshold``.

        ``predicted`` is 1 for anomalous, 0 for normal, -1 for an abstention; no change within ``radius`` can change it
        (Cohen et al. 2019). The threshold must not have been chosen by these scores.
        """
        top = (self.chosen > threshold).double().mean(1) > 0.5
        votes = ((self.scores > threshold) == top[:, None]).sum(1)
        n = self.scores.shape[1]
        p_lower = [lower_bound(int(count), n, self.alpha) for count in votes]
        radius = torch.tensor([certified_radius(p, self.sigma) for p in p_lower], dtype=torch.float64)
        predicted = torch.where(radius > 0, top.long(), -1)
        return Certificates(predicted, radius, torch.tensor(p_lower, dtype=torch.float64), votes)

    def bounds(self, radius: float, level: float = 0.5) -> tuple[Tensor, Tensor]:
        """Bounds of the smoothed score, the ``level``-quantile of the score under noise, of every changed image.

        Chiang et al. 2020: for a change of norm at most ``radius`` that quantile lies between those of the unchanged
        image at Phi(Phi^-1(level) - radius / sigma) and at Phi(Phi^-1(level) + radius / sigma), and order statistics
        bound these.

        Returns:
            lower, upper: float64 [B]; -inf and inf where so few draws bound nothing.
        """
        if not 0 < level < 1:
            raise ValueError(mistake("level", "in (0, 1)", level))
        shift, n = check_radius(radius) / self.sigma, self.scores.shape[1]
        ordered = self.scores.double().sort(1).values
        end = ordered.new_full((len(ordered), 1), torch.inf)
        padded = torch.cat([-end, ordered, end], 1)
        low = percentile_ranks(n, shifted_level(level, -shift), self.alpha)[0]
        high = percentile_ranks(n, shifted_level(level, shift), self.alpha)[1]
        return padded[:, low], padded[:, high]

    def certified_auc(self, anomalous: Tensor, radius: float, level: float = 0.5) -> float:
        """A lower bound of the area under the ROC curve of the smoothed score, if every image may change by ``radius``.

        Normal images are counted with their upper bounds, anomalous ones with their lower ones. All bounds hold at
        once with probability at least 1 - B alpha.

        Args:
            anomalous: bool [B], what each image is in truth; some and not all of them.
        """
        if anomalous.dtype != torch.bool or tuple(anomalous.shape) != (len(self.scores),):
            got = f"{anomalous.dtype} {list(anomalous.shape)}"
            raise ValueError(mistake("anomalous", f"a bool tensor of shape [{len(self.scores)}]", got))
        if not bool(anomalous.any()) or bool(anomalous.all()):
            raise ValueError(
                mistake("anomalous", "some and not all of the images", f"{int(anomalous.sum())}")
            )
        lower, upper = self.bounds(radius, level)
        pairs = lower[anomalous][:, None] - upper[~anomalous][None, :]
        return float((pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean())


@final
class ScoreSmoothing:
    """Scores images under Gaussian noise, which is a pure function of (seed, sample id, draw).

    Draws 0..n0-1 choose decisions, draws n0..n0+n-1 estimate; the result depends on neither batch size nor order.

    Args:
        score: noisy images [B, C, H, W] in [0, 1] units (unclamped) to scores [B], larger for more anomalous ones.
        sigma: deviation of the noise in [0, 1] units.
        seed: of the noise.
        batch_size: most noisy images in one call.
    """

    def __init__(
        self, score: Callable[[Tensor], Tensor], sigma: float, seed: int = 0, batch_size: int = 512
    ) -> None:
        self.score = score
        self.sigma = positive("sigma", sigma)
        self.seed = whole("seed", seed, 0, 2**64 - 1)
        self.batch_size = whole("batch_size", batch_size, 1)

    def certify(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        n0: int = 100,
        n: int = 1000,
        alpha: float = 0.001,
        *,
        out: str | Path | None = None,
        identity: Mapping[str, Any] | None = None,
        report: Callable[[int, bool], None] | None = None,
    ) -> ScoreCertificates:
        """Score ``n0 + n`` noisy copies of each image x, float32 [B, C, H, W] in [0, 1].

        Args:
            sample_ids: names of the images for the noise; 0..B-1 if omitted.
            n0, n: draws that choose decisions, and that estimate.
            alpha: error probability of each statement.
            out: file of the scores; images that an earlier call with the same ``identity`` scored are read from it.
            identity: what scores and images are, as JSON values.
            report: called with each image's id, and whether it is new.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it.
            ResumeError: ``out`` holds other scores; it is not touched then.
            NonFiniteError: a score is NaN or Inf.
        """
        whole("n0", n0, 1)
        whole("n", n, 1)
        check_alpha(alpha)
        ids = ids_of(x, sample_ids)
        drawn = {"sigma": self.sigma, "seed": self.seed, "draws": n0 + n, **NOISE, **(identity or {})}
        path = None if out is None else Path(out)
        done = dict(SCORES.open(path, drawn)) if path is not None else {}
        rows = []
        for image, name in zip(x, ids.tolist(), strict=True):
            known = done.get(name)
            found = self.sample(image, name, range(n0 + n)) if known is None else known
            if known is None and path is not None:
                append_row(path, (name, " ".join(f"{score:.9g}" for score in found.tolist())))
            if report is not None:
                report(name, known is None)
            rows.append(found)
        scores = torch.stack(rows) if rows else torch.empty(0, n0 + n)
        return ScoreCertificates(ids, scores[:, :n0], scores[:, n0:], self.sigma, float(alpha))

    @torch.no_grad()
    def sample(self, image: Tensor, sample_id: int, draws: range) -> Tensor:
        """Scores of ``draws``, float32 [len(draws)] on the host, for one image [C, H, W]."""
        parts = []
        for noisy, keys in noisy_images(image, sample_id, draws, self.sigma, self.seed, self.batch_size):
            parts.append(finite(self.score(noisy), keys.sample_ids, "the score").float().cpu())
        return torch.cat(parts)
