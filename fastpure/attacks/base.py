"""The frame around every attack: it proposes; here its proposal is projected, measured and re-scored."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import mistake
from ..purify import Defense
from ..purify.purifier import check_range
from .budget import Budget
from .gradient import score
from .result import AttackResult

Report = Callable[[int, float], None]
"""Called after each iteration with its number and the mean loss."""


@dataclass(frozen=True)
class Problem:
    """What is attacked: images [B, C, H, W] in [0, 1], labels [B], ids [B], and the defence."""

    defense: nn.Module
    x: Tensor
    y: Tensor
    ids: Tensor


class Attack(ABC):
    """Base of all attacks; subclasses are frozen dataclasses that implement ``propose``."""

    @property
    @abstractmethod
    def budget(self) -> Budget:
        """The images the attack may return."""

    @property
    @abstractmethod
    def n_eval_draws(self) -> int:
        """How many fresh draws decide."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Most (image, draw) pairs in one network call."""

    @abstractmethod
    def propose(self, problem: Problem, report: Report) -> tuple[Tensor, Tensor]:
        """Adversarial images [B, C, H, W] and the losses on the way [n_iter, B]."""

    def __call__(
        self,
        defense: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        sample_ids: Tensor | list[int] | None = None,
        report: Report | None = None,
    ) -> AttackResult:
        """Attack ``defense`` on images ``x`` with labels ``y``.

        Args:
            defense: a ``Defense``, or any module from [0, 1] images to logits.
            x: [B, C, H, W] float32 in [0, 1].
            y: int64 [B], true classes.
            sample_ids: names of the images for the noise; 0..B-1 if omitted.
            report: called with (iteration, mean loss) for progress displays.

        Raises:
            TypeError, ValueError: images, labels or ids are not as described; the message names the argument.
        """
        problem = _check(defense, x, y, sample_ids)
        begin = time.perf_counter()
        candidate, losses = self.propose(problem, report or (lambda iteration, loss: None))
        seconds = time.perf_counter() - begin
        x_adv = self.budget.project(candidate.detach(), problem.x)
        arguments = (problem.y, problem.ids, self.n_eval_draws, self.rows)
        return AttackResult(
            x_adv=x_adv,
            clean_correct=score(defense, problem.x, *arguments),
            robust_correct=score(defense, x_adv, *arguments),
            distance=self.budget.distance(x_adv, problem.x),
            losses=losses,
            seconds=seconds,
            attack=str(self),
            execution=defense.purifier.execution if isinstance(defense, Defense) else None,
        )


def _check(defense: nn.Module, x: Tensor, y: Tensor, sample_ids: Tensor | list[int] | None) -> Problem:
    if not isinstance(defense, nn.Module):
        raise TypeError(mistake("defense", "a Defense or an nn.Module", type(defense).__name__))
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.dim() != 4:
        got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(mistake("x", "a float32 tensor [B, C, H, W]", got))
    if len(x):
        check_range(x)
    if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32, torch.uint8):
        got = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(mistake("y", "an integer tensor [B]", got))
    if tuple(y.shape) != (len(x),):
        raise ValueError(mistake("y", f"of shape [{len(x)}], one label per image", f"{list(y.shape)}"))
    ids = torch.arange(len(x)) if sample_ids is None else torch.as_tensor(sample_ids)
    if tuple(ids.shape) != (len(x),):
        raise ValueError(mistake("sample_ids", f"one id per image, {len(x)}", f"{list(ids.shape)}"))
    problem = Problem(defense, x.detach().clamp(0.0, 1.0), y.to(x.device, torch.int64), ids.to(x.device))
    _check_labels(problem)
    return problem


def _check_labels(problem: Problem) -> None:
    if not len(problem.x):
        return
    # One clean image tells how many classes there are; nothing else here knows.
    head = problem.defense.classifier if isinstance(problem.defense, Defense) else problem.defense
    with torch.no_grad():
        n_classes = head(problem.x[:1]).shape[1]
    low, high = int(problem.y.min()), int(problem.y.max())
    if low < 0 or high >= n_classes:
        raise ValueError(mistake("y", f"labels in 0..{n_classes - 1}", f"values in {low}..{high}"))
