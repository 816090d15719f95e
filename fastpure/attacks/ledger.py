"""What an attack has spent on each image, and how often it was right on the way.

The unit is one gradient of the deployed defence: one draw, forward and backward. A forward pass is a half, a cheaper
gradient its share of the network passes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .base import Proposal

FORWARD = 0.5
"""What an answer without a gradient costs."""


class Ledger:
    """Counts for a batch of images [B, C, H, W], and the rows of `Proposal`'s ``correct`` and ``spent_at``.

    Args:
        like: the images.
        unit: what a look at a point costs unless said otherwise.
    """

    def __init__(self, like: Tensor, unit: float = 1.0) -> None:
        self.unit = unit
        self.spent = torch.zeros(len(like), dtype=torch.float64, device=like.device)
        self._correct: list[Tensor] = []
        self._spent_at: list[Tensor] = []

    def charge(self, units: float | Tensor, images: Tensor | None = None) -> None:
        """Spend ``units``, one number or [n], on these ``images`` [n], on all if None."""
        where = slice(None) if images is None else images
        self.spent[where] += units

    def walked(self, correct: Tensor, images: Tensor | None = None, starts: int = 0) -> None:
        """Looks at points one after the other, each of which costs a unit.

        Args:
            correct: share of correct draws at each, [T, n]; NaN where an image was not looked at.
            images: which images these are, [n]; all if None.
            starts: further looks before the first, of which nothing is noted.
        """
        where = slice(None) if images is None else images
        self.charge(self.unit * starts, images)
        for row in correct:
            self.charge((~row.isnan()).double() * self.unit, images)
            self.note(row, where)

    def note(self, correct: Tensor, where: Tensor | slice) -> None:
        """One row: the share of correct draws [n] that the images were last seen with; their costs are charged."""
        wide = correct.new_full((len(self.spent),), torch.nan, dtype=torch.float32)
        wide[where] = correct.float()
        self._correct.append(wide)
        self._spent_at.append(torch.where(wide.isnan(), torch.nan, self.spent).float())

    def member(self, proposal: Proposal, images: Tensor) -> None:
        """What an attack that was run on these ``images`` [n] after all before has counted itself."""
        before = self.spent[images]
        if proposal.correct is not None and proposal.spent_at is not None:
            for correct, spent in zip(proposal.correct, proposal.spent_at, strict=True):
                rows = correct.new_full((2, len(self.spent)), torch.nan, dtype=torch.float32)
                rows[0, images], rows[1, images] = correct.float(), (before + spent).float()
                self._correct.append(rows[0])
                self._spent_at.append(rows[1])
        if proposal.spent is not None:
            self.charge(proposal.spent, images)

    def into(self, proposal: Proposal) -> Proposal:
        """``proposal`` with the fields that it knows."""
        empty = self.spent.new_empty((0, len(self.spent)), dtype=torch.float32)
        correct = torch.stack(self._correct) if self._correct else empty
        spent_at = torch.stack(self._spent_at) if self._spent_at else empty
        return replace(proposal, correct=correct, spent_at=spent_at, spent=self.spent)


def total(values: Tensor) -> float:
    """Their exact sum, rounded once: nothing that is decided may depend on the order of the images."""
    return math.fsum(values.tolist())
