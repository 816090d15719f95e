"""AutoAttack's "rand" version as pyautoattack runs it, under the frame that judges our own attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from fastpure.attacks.base import NormAttack, Problem, Proposal, Tick
from fastpure.attacks.ledger import FORWARD


@final
@dataclass(frozen=True, kw_only=True)
class PublishedRand(NormAttack):
    """pyautoattack's ``AutoAttack(version="rand")`` on the defence as it stands, which takes its next draw each time.

    Attributes:
        n_iter, eot_iter: of both members; 100 and 20 are the published ones.
    """

    gradient: ClassVar[str] = "exact"  # type: ignore[misc]

    n_iter: int = 100
    eot_iter: int = 20

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """What the package returns: images that one draw got wrong, and the originals of the others."""
        from pyautoattack import AutoAttack

        counted = Counted(problem.target.module)
        package = AutoAttack(counted, norm=self.norm, eps=self.eps, seed=self.seed, version="rand")
        package.apgd.n_iter, package.apgd.eot_iter = self.n_iter, self.eot_iter
        package.verbose = False
        with torch.random.fork_rng(devices=[]):
            x, _ = package.run_standard_evaluation(problem.x, problem.y, batch_size=len(problem.x))
        each = torch.full((len(x),), counted.spent / max(len(x), 1), dtype=torch.float64)
        return Proposal(x.detach(), x.new_empty((0, len(x))), spent=each)


@final
class Counted(nn.Module):
    """A defence that counts the gradients it was asked for; ``spent`` is of all images together."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.spent = inner, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Logits; the package leaves [0, 1] by rounding errors, which a purifier refuses beyond 1e-6."""
        self.spent += len(x) * (1.0 if torch.is_grad_enabled() and x.requires_grad else FORWARD)
        found: Tensor = self.inner(x.clamp(0.0, 1.0))
        return found
