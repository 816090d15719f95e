"""SPSA (Uesato et al., ICML 2018): ascent along gradients that are estimated from answers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import mistake, one_of, positive, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_uniform
from .base import NormAttack, Problem, Proposal, Tick
from .gradient import logits_at
from .losses import LOSSES, TINY
from .weakness import Effort

SUMMED = 64
"""Directions held at once when they are summed; a constant, so that the sum does not depend on ``batch_size``."""

DIRECTIONS = 1
"""The step under which the noise of directions is drawn: 0 is that of random starts."""


@dataclass(frozen=True, kw_only=True)
class SPSA(NormAttack):
    """Simultaneous perturbation (Uesato et al. 2018, algorithm 1), no gradients of the target.

    The estimate is the mean over Rademacher directions v of (f(x + delta v) - f(x - delta v)) / (2 delta) v. Both
    sides of a direction see the same draws where the noise has numbers, so that their difference is not that of two
    draws; other directions and iterations see others. As in the paper, Adam follows the estimate and each iterate is
    projected. In L2, which the paper does not treat, Adam's second moment is one number per image: one per pixel
    would lead to the corner of a cube. More directions lower the noise of the defence and that of the estimate, more
    ``eot_iter`` only the first.

    It asks 2 n_directions n_iter questions per image, each of ``eot_iter`` draws. Near the edges of [0, 1] both sides
    are taken around a point ``delta`` inside them.

    Attributes:
        norm: "Linf" or "L2".
        n_iter: iterations.
        n_directions: directions per iteration; the paper takes up to 8192 questions at once.
        delta: length of a finite difference in every pixel, in [0, 1] units, at most 1/2.
        step_size: Adam's, in [0, 1] units, measured in ``norm``; eps / 3 if None, the paper's 0.01 for 8/255.
        loss: "margin", as in the paper, "ce" or "dlr".
        eot_iter: draws averaged on each side; 1 is used where nothing is random.

    Raises:
        ValueError: norm "L1", because the few pixels that its steps change are those of the largest errors.
    """

    n_iter: int = 100
    n_directions: int = 64
    delta: float = 0.01
    step_size: float | None = None
    loss: str = "margin"
    eot_iter: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "L1":
            raise ValueError(
                mistake("norm", "'Linf' or 'L2' for SPSA", "'L1'", "Use square or apgd-ce in L1")
            )
        for name in ("n_iter", "n_directions", "eot_iter"):
            whole(name, getattr(self, name), minimum=1)
        if positive("delta", self.delta) > 0.5:
            raise ValueError(mistake("delta", "at most 0.5, because both sides lie in [0, 1]", self.delta))
        if self.step_size is not None:
            positive("step_size", self.step_size)
        one_of("loss", self.loss, LOSSES)

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_iter

    def eot(self) -> int:
        """See ``Attack.eot``: all questions of an iteration."""
        return 2 * self.n_directions * self.eot_iter

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``; a gradient is the mean over the draws of all its directions."""
        return Effort(queries=2 * self.n_directions * self.n_iter, draws=self.n_directions * self.eot_iter)

    @torch.no_grad()
    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The last iterate, and the mean loss around every iterate.

        The best iterate would be the one with the luckiest draws: the minimum over noisy looks, nothing else.
        """
        x, losses = problem.x.clone(), problem.x.new_zeros((self.n_iter, len(problem.x)))
        step_size = self.step_size if self.step_size is not None else self.eps / 3
        adam = Adam(x, shared=self.norm == "L2")
        for i in range(self.n_iter if len(x) else 0):
            gradient, losses[i] = self.estimate(problem, x, i)
            x = self.budget.project(x + step_size * adam.direction(gradient), problem.x)
            tick(i, float(losses[i].mean()))
        return Proposal(x, losses)

    @torch.no_grad()
    def estimate(self, problem: Problem, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """The gradient of the loss at ``x`` [B, C, H, W], and the mean loss [B] over its questions.

        Args:
            problem: the target, labels and ids; its images are not looked at.
            x: where, in [0, 1].
            i: the iteration, which numbers the directions and the draws.
        """
        n, m = (self.eot_iter if problem.target.is_random else 1), self.n_directions
        centre, sides = x.clamp(self.delta, 1.0 - self.delta), x.new_empty((len(x) * m, 2))
        for asked in torch.arange(len(x) * m, device=x.device).split(max(1, self.batch_size // (2 * n))):
            image, number = asked // m, i * m + asked % m
            shift = self.delta * self.directions(problem.ids[image], number, x)
            points = torch.stack([centre[image] + shift, centre[image] - shift], 1).flatten(0, 1)
            twice, first = image.repeat_interleave(2), (n * number).repeat_interleave(2)
            ids = problem.ids[twice]
            logits = logits_at(problem.target, points.clamp(0.0, 1.0), ids, first, n, self.batch_size)
            labels = problem.y[twice].repeat_interleave(n)
            sides[asked] = LOSSES[self.loss](logits.flatten(0, 1), labels).view(-1, 2, n).mean(2)
        slopes = ((sides[:, 0] - sides[:, 1]) / (2 * self.delta)).view(len(x), m)
        return self._sum(slopes, problem.ids, x, i) / m, sides.view(len(x), -1).mean(1)

    def directions(self, ids: Tensor, numbers: Tensor, like: Tensor) -> Tensor:
        """The direction with each number [n] for the image with each id [n]: [n, C, H, W] of -1 and 1."""
        keys = NoiseKeys.make(self.seed, ids, numbers, Domain.ATTACK, like.device)
        uniform = philox_uniform(keys, DIRECTIONS, Stream.ATTACK_START, tuple(like.shape[1:]))
        return torch.where(uniform < 0.5, -1.0, 1.0).to(like.dtype)

    def _sum(self, slopes: Tensor, ids: Tensor, like: Tensor, i: int) -> Tensor:
        # Drawn again and not kept: they are as large as all images that were asked about.
        total = torch.zeros_like(like)
        numbers = torch.arange(self.n_directions, device=like.device)
        for k, image in enumerate(ids):
            for part in numbers.split(SUMMED):
                v = self.directions(image.expand(len(part)), i * self.n_directions + part, like)
                total[k] += (slopes[k, part].view(-1, 1, 1, 1) * v).sum(0)
        return total


class Adam:
    """Adam's direction (Kingma and Ba, ICLR 2015, algorithm 1), whose entries, or length if ``shared``, are about 1.

    Args:
        like: the images [B, C, H, W].
        shared: one second moment per image, the squared length of its gradients, instead of one per pixel.
    """

    DECAY = (0.9, 0.999)

    def __init__(self, like: Tensor, shared: bool) -> None:
        self.first, self.second, self.shared, self.steps = (
            torch.zeros_like(like),
            torch.zeros_like(like),
            shared,
            0,
        )

    def direction(self, gradient: Tensor) -> Tensor:
        """Upwards, after one more gradient [B, C, H, W]; zero while all of them were."""
        self.steps += 1
        square = gradient.square()
        if self.shared:
            square = square.flatten(1).sum(1).view(-1, 1, 1, 1).expand_as(gradient)
        self.first = self.first.lerp(gradient, 1 - self.DECAY[0])
        self.second = self.second.lerp(square, 1 - self.DECAY[1])
        mean, spread = (
            moment / (1 - decay**self.steps)
            for moment, decay in zip((self.first, self.second), self.DECAY, strict=True)
        )
        return mean / spread.sqrt().clamp_min(TINY)
