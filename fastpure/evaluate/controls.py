"""Corruptions that seek nothing: non-adversarial controls under the same protocol, store and statistics.

A defence that loses as much to random corruption as to an attack has been measured with a weak attack; one that is
good against corruption only has not been shown to be robust. COUP (appendix E.1) reports salt-and-pepper noise; the
amount is not given there, so no default here is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from ..attacks import ATTACKS, Ensemble, Transfer
from ..attacks.base import Attack, Problem, Proposal, Tick
from ..attacks.budget import Budget
from ..errors import mistake, positive, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform


@dataclass(frozen=True)
class Corruption(Attack):
    """Base of the controls: any image of [0, 1] is allowed, and the noise is a function of (seed, sample id)."""

    asks: ClassVar[bool] = False
    seeks: ClassVar[bool] = False

    @property
    def budget(self) -> Budget:
        """All images in [0, 1]; distances are reported in Linf."""
        return Budget("Linf", 1.0)

    def keys(self, problem: Problem, seed: int) -> NoiseKeys:
        """Keys of a stream that no defence reads."""
        return NoiseKeys.make(
            seed=seed, sample_ids=problem.ids, draw=0, domain=Domain.EVALUATION, device=problem.x.device
        )


@final
@dataclass(frozen=True)
class SaltAndPepper(Corruption):
    """Set a share ``amount`` of the pixels, each in all channels, to black or white with equal chance.

    Attributes:
        amount: probability in (0, 1] that a pixel is replaced.
        seed: of the noise.
        eval_draws, batch_size: as for attacks.
    """

    amount: float = 0.05
    seed: int = 0
    eval_draws: int = 10
    batch_size: int = 256

    def __post_init__(self) -> None:
        if positive("amount", self.amount) > 1:
            raise ValueError(mistake("amount", "a share in (0, 1]", self.amount))
        _check(self.seed, self.eval_draws, self.batch_size)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The corrupted images, and no losses."""
        if not len(problem.x):
            return Proposal(problem.x.clone(), problem.x.new_zeros((0, 0)))
        _, height, width = problem.x.shape[1:]
        # One number decides both: below `amount` the pixel goes, and the lower half of that is pepper.
        noise = philox_uniform(self.keys(problem, self.seed), 0, Stream.ATTACK_START, (1, height, width))
        value = (noise >= 0.5 * self.amount).to(problem.x.dtype)
        corrupted = torch.where(noise < self.amount, value, problem.x)
        return Proposal(corrupted, problem.x.new_zeros((0, len(problem.x))))


@final
@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Add independent normal noise of standard deviation ``std`` ([0, 1] units) and clamp to [0, 1].

    Attributes:
        std: standard deviation, above 0.
        seed: of the noise.
        eval_draws, batch_size: as for attacks.
    """

    std: float = 0.1
    seed: int = 0
    eval_draws: int = 10
    batch_size: int = 256

    def __post_init__(self) -> None:
        positive("std", self.std)
        _check(self.seed, self.eval_draws, self.batch_size)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The corrupted images, and no losses."""
        if not len(problem.x):
            return Proposal(problem.x.clone(), problem.x.new_zeros((0, 0)))
        shape = tuple(problem.x.shape[1:])
        noise = philox_normal(self.keys(problem, self.seed), 0, Stream.ATTACK_START, shape)
        corrupted = (problem.x + self.std * noise).clamp(0.0, 1.0)
        return Proposal(corrupted, problem.x.new_zeros((0, len(problem.x))))


def _check(seed: int, eval_draws: int, batch_size: int) -> None:
    whole("seed", seed, maximum=2**64 - 1)
    whole("eval_draws", eval_draws, minimum=1)
    whole("batch_size", batch_size, minimum=1)


CONTROLS: dict[str, type[Corruption]] = {
    "salt_and_pepper": SaltAndPepper,
    "gaussian": GaussianNoise,
}
"""Every control by name."""

_ALL: tuple[type[Attack], ...] = (*ATTACKS.values(), Transfer, Ensemble, *CONTROLS.values())
KINDS: dict[str, type[Attack]] = {kind.__name__: kind for kind in _ALL}
"""Every attack and control by the name its class has in run files."""
