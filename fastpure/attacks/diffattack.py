"""DiffAttack (Kang et al., NeurIPS 2023): the classification loss plus the deviation of every reverse step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import mistake, one_of, positive
from ..kernels import Domain
from ..methods import Method
from ..purify import Target
from .base import Problem, Proposal, Tick
from .gradient import Objective
from .gradient_attack import GradientAttack
from .losses import LOSSES
from .pgd import PGD


@dataclass(frozen=True, kw_only=True)
class DiffAttack(GradientAttack):
    """PGD on L_cls + weight * mean over steps of alpha(t) |x_t - x'_t|^2 / D, with exact gradients.

    x_t is the input diffused to the time of the step, with the noise the defence itself diffused it with, and
    x'_t the state of the reverse process there, both in [-1, 1] coordinates. All steps count, not a random third
    of them; the time weight of the paper is not given in it, alpha(t), the signal amplitude, is our choice.

    Attributes:
        weight: of the deviations; 0 is PGD.
        step_size, random_start, loss: as in PGD.
    """

    weight: float = 1.0
    step_size: float | None = None
    random_start: bool = True
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, LOSSES)
        if self.gradient != "exact":
            expected = "'exact', because the loss looks at every step"
            raise ValueError(mistake("gradient", expected, repr(self.gradient)))
        if self.weight != 0:
            positive("weight", self.weight)
        if self.step_size is not None:
            positive("step_size", self.step_size)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The last iterate."""
        _check(problem.target)
        pgd = PGD(**self.shared(), step_size=self.step_size, random_start=self.random_start, loss=self.loss)
        return pgd.ascend(problem, self._goal(problem.target), tick)

    def _goal(self, target: Target) -> Objective:
        loss, method = LOSSES[self.loss], target.method

        def evaluate(x: Tensor, labels: Tensor, ids: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
            states = target.trajectory(x, ids, draws, Domain.ATTACK)
            end = states[-1].clamp(0.0, 1.0) if method.clip_output else states[-1]
            logits = target.classify(end, ids, draws, Domain.ATTACK)
            return loss(logits, labels) + self.weight * deviation(method, x, states), logits

        return evaluate


def deviation(method: Method, x: Tensor, states: Tensor) -> Tensor:
    """Mean over the reverse steps of alpha |x_t - x'_t|^2 / D, [B]; ``states`` [K + 1, B, C, H, W] in [0, 1] units."""
    rows = method.table().rows
    image, way = method.prepared(2.0 * x - 1.0), 2.0 * states - 1.0
    noise = ((way[1] - rows[0].a * image) / rows[0].d).detach()
    total = x.new_zeros(len(x))
    for k in range(1, len(rows)):
        # The state after row k is at the noise level of the next row; after the last it is an image.
        alpha, sigma = (rows[k + 1].alpha, rows[k + 1].sigma) if k + 1 < len(rows) else (1.0, 0.0)
        difference = way[k + 1] - (alpha * image + sigma * noise)
        total = total + alpha * difference.square().flatten(1).mean(1)
    return total / (len(rows) - 1)


def _check(target: Target) -> None:
    if not target.purifies:
        target.no_purifier("DiffAttack", "Use PGD")
    method = target.method
    rows = method.table().rows
    once = rows[0].forward and rows[0].d != 0.0 and not any(row.forward for row in rows[1:])
    if not once or method.procedure is not None:
        expected = "a defence that diffuses its input once, which DiffAttack compares its steps with"
        raise ValueError(mistake("defense", expected, f"method {method.name}", "Use PGD"))
