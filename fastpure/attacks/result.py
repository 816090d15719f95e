"""What an attack found, scored on draws it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..intervals import Interval, wilson
from ..reverse import Execution


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

    @property
    def clean_accuracy(self) -> Interval:
        """Mean accuracy of one draw on the original images, Wilson interval over images."""
        return _accuracy(self.clean_correct)

    @property
    def robust_accuracy(self) -> Interval:
        """Mean accuracy of one draw on the adversarial images, Wilson interval over images."""
        return _accuracy(self.robust_correct)

    def __str__(self) -> str:
        return f"{self.attack}\nclean  {self.clean_accuracy}\nrobust {self.robust_accuracy}"


def _accuracy(correct: Tensor) -> Interval:
    return wilson(float(correct.double().mean(1).sum()) if len(correct) else 0.0, len(correct))
