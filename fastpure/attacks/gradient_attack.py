"""What attacks that follow gradients share: iterations, draws, the gradient mode; in an lp ball, or rendered."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import one_of, positive, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_uniform
from ..purify.description import LATER
from .base import Attack, AttackResult, NormAttack, Problem
from .gradient import Logits, Loss, Objective, objective
from .gradient_modes import GradientMode, has_noise
from .losses import LOSSES, TARGETED
from .start import Start
from .targets import Targets, checked, targets
from .weakness import Effort


@dataclass(frozen=True, kw_only=True)
class GradientAttack(NormAttack):
    """An attack in an lp ball that follows gradients averaged over draws.

    Attributes:
        n_iter: iterations.
        eot_iter: draws averaged per iteration, fresh ones each time; 1 is used where nothing is random.
        gradient: what is differentiated, a name of ``gradient_modes.MODES``; decisions are the defence's own.
        surrogate_steps: for gradient="surrogate", its network calls; a fifth of the defence's if None.
        surrogate_dt: for gradient="surrogate", its step in diffusion time, instead.
    """

    n_iter: int = 20
    eot_iter: int = 20
    gradient: str = "exact"
    surrogate_steps: int | None = None
    surrogate_dt: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_iter", self.n_iter, minimum=1)
        whole("eot_iter", self.eot_iter, minimum=1)
        self.mode()

    def mode(self) -> GradientMode:
        """The gradient mode with its settings."""
        return GradientMode(self.gradient, self.surrogate_steps, self.surrogate_dt)

    def shared(self) -> dict[str, Any]:
        """The settings that every gradient attack has, for handing them on to another."""
        return {field.name: getattr(self, field.name) for field in fields(GradientAttack)}

    def logits(self, problem: Problem) -> Logits:
        """The function this attack differentiates."""
        return self.mode().logits(problem.target)

    def n_draws(self, problem: Problem) -> int:
        """Draws per iteration; 1 where what is differentiated has no noise to average."""
        return self.eot_iter if has_noise(problem.target, self.gradient) else 1

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_iter

    def eot(self) -> int:
        """See ``Attack.eot``."""
        return self.eot_iter

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return Effort(steps=self.n_iter, draws=self.eot_iter, noisy=self.gradient != "blind")

    def uniform(self, problem: Problem, draw: int = 0) -> Tensor:
        """Noise in (0, 1) for a random start, [B, C, H, W]: a function of the seed, the sample ids and ``draw``."""
        shape = tuple(problem.x.shape[1:])
        keys = NoiseKeys.make(
            seed=self.seed, sample_ids=problem.ids, draw=draw, domain=Domain.ATTACK, device=problem.x.device
        )
        return philox_uniform(keys, 0, Stream.ATTACK_START, shape).to(torch.float32)


@dataclass(frozen=True, kw_only=True)
class StartedAttack(GradientAttack):
    """One that can begin where another has ended.

    Attributes:
        start: where the search begins, instead of at a random point: images [N, C, H, W] float32 in [0, 1] in the order
            of the attacked ones, an `AttackResult`, a `fastpure.Run` or the path of a run file (matched by sample id),
            or a `Start`. Images outside the ball of their originals are refused.
    """

    start: Start | Tensor | AttackResult | str | Path | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "start", Start.of(self.start))

    def given(self, problem: Problem) -> Tensor | None:
        """The first point of each image, [B, C, H, W], inside the budget; None where chance chooses it.

        Raises:
            ValueError: ``start`` does not fit the images, see `Start.at`.
        """
        start = Start.of(self.start)
        return None if start is None else start.at(problem.x, problem.ids, self.budget)

    def named(self, sample_ids: Tensor) -> Attack:
        """See ``Attack.named``."""
        start = Start.of(self.start)
        return self if start is None else replace(self, start=start.named(sample_ids))

    def for_counting(self) -> Attack:
        """See ``Attack.for_counting``."""
        own = super().for_counting()
        return own if self.start is None else replace(own, start=None)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class TargetedAttack(StartedAttack):
    """One that can be told which wrong class to drive an image towards.

    Attributes:
        targeted: None for any wrong class, or the one whose loss is descended: "most-likely", "least-likely" or
            "random" among the other classes; a class (images of that class go to their most likely other one); or
            labels int64 [N] in the order of the images, or as `Targets` by sample id. Success is misclassification all
            the same: that is what is judged, and what chooses among iterates and leaves images alone.
    """

    targeted: str | int | Tensor | Targets | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "targeted", checked(self.targeted))

    def named(self, sample_ids: Tensor) -> Attack:
        """See ``Attack.named``."""
        own, wanted = super().named(sample_ids), checked(self.targeted)
        if not isinstance(wanted, Targets):
            return own
        return replace(own, targeted=wanted.named(sample_ids))  # type: ignore[type-var]

    def for_counting(self) -> Attack:
        """See ``Attack.for_counting``."""
        own = super().for_counting()
        return replace(own, targeted="random") if isinstance(self.targeted, Targets) else own  # type: ignore[type-var]

    def aims(self, problem: Problem, logits: Logits) -> Tensor:
        """Labels for the loss: the true classes [B], or (true class, target) [B, 2]; see `targets.targets`."""
        wanted = checked(self.targeted)
        if wanted is None:
            return problem.y
        draws = range(self.n_draws(problem))
        return torch.stack(
            [problem.y, targets(wanted, problem, logits, draws, self.batch_size, self.seed)], 1
        )

    def loss_called(self, name: str) -> Loss:
        """The loss of this name that fits the labels of ``aims``."""
        return LOSSES[name] if self.targeted is None else TARGETED[name]


@dataclass(frozen=True, kw_only=True)
class RenderedAttack(Attack):
    """Base of those attacks. The gradient with respect to the image, averaged over draws, is pulled back to them.

    Attributes:
        bound: of the change, in the attack's own measure.
        n_iter: iterations.
        eot_iter: draws averaged per iteration; 1 where nothing is random.
        gradient: gradient mode; ``surrogate_steps`` and ``surrogate_dt`` as in PGD.
        loss: "ce", "margin" or "dlr".
        eval_draws: fresh draws that decide in the end.
        batch_size: most (image, draw) pairs in one network call.
    """

    bound: float = 0.05
    n_iter: int = 100
    eot_iter: int = 20
    gradient: str = "exact"
    surrogate_steps: int | None = None
    surrogate_dt: float | None = None
    loss: str = "ce"
    eval_draws: int = 10
    batch_size: int = 256

    def __post_init__(self) -> None:
        positive("bound", self.bound)
        one_of("loss", self.loss, LOSSES)
        for name in ("n_iter", "eot_iter", "eval_draws", "batch_size"):
            whole(name, getattr(self, name), minimum=1)
        self.mode()

    @property
    @abstractmethod
    def measure(self) -> str:
        """What ``bound`` limits, in words."""

    def mode(self) -> GradientMode:
        """The gradient mode with its settings."""
        return GradientMode(self.gradient, self.surrogate_steps, self.surrogate_dt)

    def goal(self, problem: Problem) -> Objective:
        """The classification loss."""
        return objective(self.mode().logits(problem.target), LOSSES[self.loss])

    def draws(self, problem: Problem, i: int) -> range:
        """The draws of iteration ``i``."""
        n = self.eot_iter if has_noise(problem.target, self.gradient) else 1
        return range(i * n, (i + 1) * n)

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_iter

    def eot(self) -> int:
        """See ``Attack.eot``."""
        return self.eot_iter

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return Effort(steps=self.n_iter, draws=self.eot_iter, noisy=self.gradient != "blind")
