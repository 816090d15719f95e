"""Projected gradient descent with expectation over transformation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import one_of, positive, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_uniform
from .base import Attack, Problem, Report
from .budget import Budget
from .gradient import eot_gradient, is_random
from .losses import LOSSES


@dataclass(frozen=True)
class PGD(Attack):
    """PGD (Madry et al. 2018) with EOT (Athalye et al. 2018) and the defence's exact gradient.

    Attributes:
        norm: "Linf" or "L2".
        eps: radius in [0, 1] units.
        n_iter: iterations.
        eot_iter: draws averaged per iteration, fresh ones each time; 1 is used where nothing is random.
        step_size: length of a step in [0, 1] units; 2.5 eps / n_iter if None.
        random_start: begin at a random point of the ball, else at the image.
        loss: "ce" or "margin".
        eval_draws: fresh draws that decide in the end.
        batch_size: most (image, draw) pairs in one network call.
        seed: of the random start only.
    """

    norm: str = "Linf"
    eps: float = 8 / 255
    n_iter: int = 20
    eot_iter: int = 20
    step_size: float | None = None
    random_start: bool = True
    loss: str = "ce"
    eval_draws: int = 10
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        Budget(self.norm, self.eps)
        one_of("loss", self.loss, LOSSES)
        for name in ("n_iter", "eot_iter", "eval_draws", "batch_size"):
            whole(name, getattr(self, name), minimum=1)
        whole("seed", self.seed, maximum=2**64 - 1)
        if self.step_size is not None:
            positive("step_size", self.step_size)

    @property
    def budget(self) -> Budget:
        """The ball in which the adversarial images lie."""
        return Budget(self.norm, self.eps)

    @property
    def n_eval_draws(self) -> int:
        """See ``Attack.n_eval_draws``."""
        return self.eval_draws

    @property
    def rows(self) -> int:
        """See ``Attack.rows``."""
        return self.batch_size

    def propose(self, problem: Problem, report: Report) -> tuple[Tensor, Tensor]:
        """The last iterate and the EOT-averaged loss at every iterate."""
        n_draws = self.eot_iter if is_random(problem.defense) else 1
        step_size = self.step_size if self.step_size is not None else 2.5 * self.eps / self.n_iter
        x, losses = self._start(problem), problem.x.new_zeros((self.n_iter, len(problem.x)))
        for i in range(self.n_iter):
            draws = range(i * n_draws, (i + 1) * n_draws)
            gradient, losses[i] = eot_gradient(
                problem.defense, x, problem.y, problem.ids, draws, LOSSES[self.loss], self.batch_size
            )
            x = self.budget.project(self.budget.ascend(x, gradient, step_size), problem.x)
            report(i, float(losses[i].mean()) if len(x) else 0.0)
        return x, losses

    def _start(self, problem: Problem) -> Tensor:
        if not self.random_start or not len(problem.x):
            return problem.x.clone()
        keys = NoiseKeys.make(
            seed=self.seed, sample_ids=problem.ids, draw=0, domain=Domain.ATTACK, device=problem.x.device
        )
        noise = philox_uniform(keys, 0, Stream.ATTACK_START, tuple(problem.x.shape[1:]))
        return self.budget.start(problem.x, noise.to(torch.float32))
