"""`AttackResult`: what came out of an attack, with its verdict, its intervals and its doubts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..intervals import Interval, wilson
from ..reverse import Execution
from .weakness import Finding, Seen, Setting, check


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Adversarial images with their verdict.

    Attributes:
        x_adv: [B, C, H, W] float32, inside the budget and [0, 1].
        clean_correct: bool [B, K], the original images on K evaluation draws (K = 1 if nothing is random).
        robust_correct: bool [B, K], the adversarial images on the same draws.
        distance: float64 [B], measured on the stored pixels.
        losses: float32 [n_iter, B], the attack's loss at each iterate; NaN where an image was not attacked.
        seconds: wall time of the attack, without the scoring.
        attack: the attack with its settings, as text.
        execution: how the defence's steps were carried out; None for a module that is no ``Defense``.
        zero_gradients: bool [B], where the attack's first gradient was exactly zero: it could not move the image,
            and robustness there shows nothing. None for attacks that use no gradient.
        agreement: float64 [B], mean over the iterations of how far two halves of the draws agree on the gradient (a
            cosine, see ``Query``); NaN where not measured, None for attacks that use no gradient.
        setting: what the attack was and met, for `findings`; None if nobody said.
    """

    x_adv: Tensor
    clean_correct: Tensor
    robust_correct: Tensor
    distance: Tensor
    losses: Tensor
    seconds: float
    attack: str
    execution: Execution | None = None
    zero_gradients: Tensor | None = None
    agreement: Tensor | None = None
    setting: Setting | None = None

    @property
    def clean_accuracy(self) -> Interval:
        """Mean accuracy of one draw on the original images, Wilson interval over images."""
        return _accuracy(self.clean_correct)

    @property
    def robust_accuracy(self) -> Interval:
        """Mean accuracy of one draw on the adversarial images, Wilson interval over images."""
        return _accuracy(self.robust_correct)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Every check for a weak attack with its value, as in an evaluation; none where the setting is not known."""
        if self.setting is None:
            return ()
        n = len(self.distance)

        def column(values: Tensor | None) -> np.ndarray:
            return np.full(n, np.nan) if values is None else values.detach().cpu().double().numpy()

        seen = Seen(
            correct=self.clean_correct.cpu().numpy(),
            clean=column(self.clean_correct.double().mean(1)),
            robust=column(self.robust_correct.double().mean(1)),
            distances=column(self.distance),
            traces=self.losses.detach().cpu().numpy().T,
            zero_gradients=column(self.zero_gradients),
            agreement=column(self.agreement),
        )
        return check(self.setting, seen)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that say the numbers should not be trusted as they are."""
        return tuple(finding for finding in self.findings if finding.alarm)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was asked for and not done, such as members of an ensemble that need more classes."""
        effort = None if self.setting is None else self.setting.effort
        return () if effort is None else effort.left_out

    def __str__(self) -> str:
        lines = [self.attack, f"clean  {self.clean_accuracy}", f"robust {self.robust_accuracy}"]
        lines += [f"NOTE     {note}" for note in self.notes]
        return "\n".join([*lines, *(f"WARNING  {warning}" for warning in self.warnings)])

    @staticmethod
    def joined(parts: Sequence[AttackResult]) -> AttackResult:
        """One result of an attack that was run on parts of a set of images, in their order, on the CPU."""
        longest = max(len(part.losses) for part in parts)

        def column(name: str) -> Tensor:
            return torch.cat([getattr(part, name).cpu() for part in parts])

        def optional(name: str) -> Tensor | None:
            return None if any(getattr(part, name) is None for part in parts) else column(name)

        losses = []
        for part in parts:
            rest = part.losses.new_full((longest - len(part.losses), part.losses.shape[1]), torch.nan)
            losses.append(torch.cat([part.losses, rest]).cpu())
        return replace(
            parts[0],
            x_adv=column("x_adv"),
            clean_correct=column("clean_correct"),
            robust_correct=column("robust_correct"),
            distance=column("distance"),
            losses=torch.cat(losses, 1),
            seconds=sum(part.seconds for part in parts),
            zero_gradients=optional("zero_gradients"),
            agreement=optional("agreement"),
        )


def _accuracy(correct: Tensor) -> Interval:
    return wilson(float(correct.double().mean(1).sum()) if len(correct) else 0.0, len(correct))
