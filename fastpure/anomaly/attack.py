"""PGD with EOT on an anomaly score: normal images shall look anomalous, anomalous ones normal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from ..attacks import Budget
from ..errors import mistake, positive, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_uniform
from ..progress import Progress
from ..shown import Card, Settings, Shown, per_image, spread


class Scorer(Protocol):
    """What the attack asks of a detector; one without randomness ignores ids, draw and domain."""

    def score(self, x: Tensor, sample_ids: Tensor | None, draw: int | Tensor, *, domain: Domain) -> Tensor:
        """Scores [B] of images [B, C, H, W], larger for more anomalous ones."""
        ...


@final
@dataclass(frozen=True, eq=False, repr=False)
class AnomalyAttackResult(Shown):
    """Attacked images [B, C, H, W]; scores float32 [B] before and after, means over fresh draws; distances [B]."""

    x_adv: Tensor
    clean_score: Tensor
    attacked_score: Tensor
    distance: Tensor

    def _shown(self) -> Card:
        columns = {"before": self.clean_score, "after": self.attacked_score, "distance": self.distance}
        return Card(
            f"AnomalyAttackResult of {len(self.distance)} images",
            tuple((name, spread(values)) for name, values in columns.items()),
            grids=(per_image("images: scores and distance", tuple(columns), tuple(columns.values())),),
        )


@final
@dataclass(frozen=True)
class AnomalyAttack(Settings):
    """Projected gradient descent on the score, averaged over draws of the detector's noise.

    Attributes:
        norm, eps: budget in [0, 1] units. AdvRAD's evaluation uses Linf 2/255 and L2 0.2.
        n_iter: iterations.
        eot_iter: draws averaged per iteration, fresh ones each time.
        step_size: 2.5 eps / n_iter if None.
        random_start: begin at a random point of the ball.
        eval_draws: fresh draws, of the evaluation domain, that the reported scores average over.
        batch_size: most (image, draw) pairs in one call.
        seed: of the random start.
    """

    norm: str = "Linf"
    eps: float = 2 / 255
    n_iter: int = 20
    eot_iter: int = 4
    step_size: float | None = None
    random_start: bool = True
    eval_draws: int = 10
    batch_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", Budget(self.norm, self.eps).norm)
        for name in ("n_iter", "eot_iter", "eval_draws", "batch_size"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0, 2**64 - 1)
        if self.step_size is not None:
            positive("step_size", self.step_size)

    def __call__(
        self,
        detector: Scorer,
        x: Tensor,
        anomalous: Tensor,
        *,
        sample_ids: Tensor | None = None,
        progress: bool = False,
    ) -> AnomalyAttackResult:
        """Attack images x [B, C, H, W] float32 in [0, 1]; ``anomalous`` bool [B] says what each is in truth.

        With ``progress`` a bar is shown.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it.
        """
        if anomalous.dtype != torch.bool or tuple(anomalous.shape) != (len(x),):
            got = f"{anomalous.dtype} {list(anomalous.shape)}"
            raise ValueError(mistake("anomalous", f"a bool tensor of shape [{len(x)}]", got))
        ids = torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids
        budget = Budget(self.norm, self.eps)
        step_size = self.step_size if self.step_size is not None else 2.5 * self.eps / self.n_iter
        sign = torch.where(anomalous, -1.0, 1.0).to(x).view(-1, 1, 1, 1)
        point = self._start(budget, x, ids)
        with Progress(self.n_iter, "iterations", doing="attacking", shown=progress) as bar:
            for i in range(self.n_iter):
                draws = range(i * self.eot_iter, (i + 1) * self.eot_iter)
                gradient = self._gradient(detector, point, ids, draws)
                point = budget.project(budget.ascend(point, sign * gradient, step_size), x)
                bar.step()
            before, after = (
                mean_score(detector, image, ids, self.eval_draws, self.batch_size) for image in (x, point)
            )
        return AnomalyAttackResult(point, before, after, budget.distance(point, x))

    def _start(self, budget: Budget, x: Tensor, ids: Tensor) -> Tensor:
        if not self.random_start or not len(x):
            return x.clone()
        keys = NoiseKeys.make(self.seed, ids, 0, Domain.ATTACK, x.device)
        return budget.start(x, philox_uniform(keys, 0, Stream.ATTACK_START, tuple(x.shape[1:])).to(x.dtype))

    def _gradient(self, detector: Scorer, x: Tensor, ids: Tensor, draws: range) -> Tensor:
        gradients = x.new_empty((len(x) * len(draws), *x.shape[1:]))
        for rows, image, draw in _rows(len(x), draws, self.batch_size, x.device):
            leaf = x[image].detach().requires_grad_(True)
            with torch.enable_grad():
                value = detector.score(leaf, ids[image], draw, domain=Domain.ATTACK)
            (gradients[rows],) = torch.autograd.grad(value.sum(), leaf)
        return gradients.view(len(x), len(draws), *x.shape[1:]).mean(1)


@torch.no_grad()
def mean_score(
    detector: Scorer, x: Tensor, ids: Tensor | None = None, draws: int = 10, batch_size: int = 512
) -> Tensor:
    """Score of each image averaged over ``draws`` draws of the evaluation domain, [B]."""
    ids = torch.arange(len(x), device=x.device) if ids is None else ids
    scores = x.new_empty(len(x) * draws)
    for rows, image, draw in _rows(len(x), range(draws), batch_size, x.device):
        scores[rows] = detector.score(x[image], ids[image], draw, domain=Domain.EVALUATION)
    return scores.view(len(x), draws).mean(1)


def _rows(
    n_images: int, draws: range, batch_size: int, device: torch.device
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    total = n_images * len(draws)
    for begin in range(0, total, batch_size):
        row = torch.arange(begin, min(begin + batch_size, total), device=device)
        yield slice(begin, begin + len(row)), row // len(draws), draws.start + row % len(draws)
