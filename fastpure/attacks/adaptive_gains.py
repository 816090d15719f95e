"""What the stages of `Adaptive` have gained, for what they cost, and whether another would gain anything."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .ledger import total

QUANTILE, ONE_SIDED = 1.96, 1.645
"""Of the normal distribution, for 95 % on two sides and on one."""


@dataclass(eq=False)
class Gains:
    """Accuracy of all images on draws that had no part in choosing, before and after each stage.

    Attributes:
        measured: float64 [B], the last known share of correct draws of each image, 1 in the beginning.
        look_draws: draws of one look.
        eval_draws: draws of the verdict.
        kinds: accuracy per gradient that the last stage of each kind gained.
    """

    measured: Tensor
    look_draws: int
    eval_draws: int
    kinds: dict[str, float] = field(default_factory=dict)
    _last: list[tuple[float, float]] = field(default_factory=list)

    def measure(self, active: Tensor, rate: Tensor, value: Tensor, kind: str | None, price: float) -> None:
        """Note what a stage of ``kind`` has gained that took ``price`` gradients per image; None: only note the rates.

        Args:
            active: images that were looked at [n], by index.
            rate: their shares of correct draws [n].
            value: of all images [B], how often a draw is right by all that is known: those that have been settled are
                not looked at again, and count as that.
        """
        n, gained = len(self.measured), self.measured[active] - rate
        gone = torch.ones_like(self.measured, dtype=torch.bool)
        gone[active] = False
        rest = torch.minimum(value.clamp_min(0.0), self.measured)
        lost = total((self.measured - rest)[gone])
        self.measured[gone] = rest[gone]
        spread = total(rate * (1.0 - rate)) / max(self.look_draws - 1, 1)
        gain = (total(gained) + lost) / n
        if kind is not None:
            # Neighbouring gains share a measurement, which makes their mean surer than this says.
            self._last = [*self._last, (gain, 2.0 * spread / n**2)][-2:]
            self.kinds[kind] = gain / max(price, 1e-9)
        self.measured[active] = rate

    @property
    def saturated(self) -> bool:
        """Whether the last two stages gained less, at 95 %, than what the verdict's draws leave uncertain."""
        if len(self._last) < 2:
            return False
        n, p = len(self.measured), self.measured
        # At least one draw: where all rates are zero or one, the verdict has steps of that.
        uncertain = (
            max(QUANTILE * math.sqrt(total(p * (1.0 - p)) / self.eval_draws), 1.0 / self.eval_draws) / n
        )
        mean = sum(gain for gain, _ in self._last) / 2
        error = math.sqrt(sum(variance for _, variance in self._last)) / 2
        return mean + ONE_SIDED * error < uncertain
