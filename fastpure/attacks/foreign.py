"""FAB and Square through pyautoattack (Croce and Hein 2020; Andriushchenko et al. 2020), extra "attacks".

The packages' attacks choose the images that go on by themselves and draw from the global generator. Here each
image is attacked by itself with a seed of its own, inside a copy of the generator's state: its result depends
neither on the other images nor on the caller's generator, which is left as it was.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MissingExtra, mistake, one_of, whole
from ..kernels import Domain
from .base import NormAttack, Problem, Proposal, Report
from .gradient import is_random, logits_of


@dataclass(frozen=True, kw_only=True)
class ForeignAttack(NormAttack):
    """Base of the attacks whose loop is pyautoattack's; budget and decisions are ours.

    Attributes:
        eot_iter: draws whose mean logits answer a query, fresh ones for each; 1 where nothing is random.
    """

    eot_iter: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("eot_iter", self.eot_iter, minimum=1)

    @abstractmethod
    def build(self, oracle: Oracle, seed: int) -> Any:
        """The package's attack on ``oracle``."""

    def attack_one(self, oracle: Oracle, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """The package's candidate for one image [1, C, H, W]; the image itself where it found none."""
        found: Tensor = self.build(oracle, seed).perturb(x, y)
        return found

    def propose(self, problem: Problem, report: Report) -> Proposal:
        """The package's candidates, image by image."""
        n_draws = self.eot_iter if is_random(problem.defense) else 1
        proposals = problem.x.clone()
        device = problem.x.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for i in range(len(problem.x)):
                name = int(problem.ids[i])
                oracle = Oracle(problem.defense, name, n_draws, self.batch_size, problem.n_classes)
                x, y = problem.x[i : i + 1].clone(), problem.y[i : i + 1]
                proposals[i] = self.attack_one(oracle, x, y, _seed(self.seed, name))[0].detach()
                report(i, float("nan"))
        return Proposal(proposals, problem.x.new_empty((0, len(problem.x))))


@dataclass(frozen=True, kw_only=True)
class FAB(ForeignAttack):
    """Fast Adaptive Boundary attack (Croce and Hein, ICML 2020), targeted as in AutoAttack.

    Attributes:
        n_iter: iterations for each target.
        n_restarts: restarts for each target.
        n_target_classes: how many of the other classes, most probable first.
    """

    n_iter: int = 100
    n_restarts: int = 1
    n_target_classes: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_iter", "n_restarts", "n_target_classes"):
            whole(name, getattr(self, name), minimum=1)

    def build(self, oracle: Oracle, seed: int) -> Any:
        """pyautoattack's FABAttack_PT."""
        kind = _published("fab_pt", "FABAttack_PT", "FAB")
        targets = min(self.n_target_classes, oracle.n_classes - 1)
        return kind(
            oracle,
            norm=self.norm,
            n_restarts=self.n_restarts,
            n_iter=self.n_iter,
            eps=self.eps,
            targeted=True,
            n_target_classes=targets,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Square(ForeignAttack):
    """Square attack (Andriushchenko et al., ECCV 2020): queries only, no gradients.

    Attributes:
        n_queries: queries for each restart.
        p_init: share of the pixels the first squares cover.
        loss: "margin" or "ce", the score that is lowered.
    """

    n_queries: int = 5000
    p_init: float = 0.8
    loss: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_queries", self.n_queries, minimum=1)
        one_of("loss", self.loss, ("margin", "ce"))

    def build(self, oracle: Oracle, seed: int) -> Any:
        """pyautoattack's SquareAttack with AutoAttack's settings."""
        return _published("square", "SquareAttack", "Square")(
            oracle,
            norm=self.norm,
            n_queries=self.n_queries,
            eps=self.eps,
            p_init=self.p_init,
            seed=seed,
            loss=self.loss,
            resc_schedule=False,
        )

    def attack_one(self, oracle: Oracle, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """The point of lowest score, whether or not it was misclassified on its own draw: fresh draws decide."""
        if self.norm != "Linf" and min(x.shape[2:]) < 5:
            size = f"{list(x.shape[1:])}"
            raise ValueError(mistake("x", f"at least 5 pixels high and wide for Square in {self.norm}", size))
        attack = self.build(oracle, seed)
        attack.init_hyperparam(x)
        torch.random.manual_seed(seed)
        _, found = attack.attack_single_run(x, y)
        return found  # type: ignore[no-any-return]


class Oracle:
    """What the package sees of the defence: mean logits of one image's variants over fresh attack draws."""

    def __init__(
        self, defense: nn.Module, sample_id: int, n_draws: int, batch_size: int, n_classes: int
    ) -> None:
        self.defense, self.sample_id = defense, sample_id
        self.n_draws, self.batch_size, self.n_classes = n_draws, batch_size, n_classes
        self.asked = 0

    def __call__(self, points: Tensor) -> Tensor:
        """Logits [n, classes] of ``points`` [n, C, H, W], differentiable."""
        first, self.asked = self.asked * self.n_draws, self.asked + 1
        # The packages leave [0, 1] by rounding errors, which a purifier refuses beyond 1e-6.
        points = points.clamp(0.0, 1.0)
        outputs = []
        for begin in range(0, len(points) * self.n_draws, self.batch_size):
            end = min(begin + self.batch_size, len(points) * self.n_draws)
            row = torch.arange(begin, end, device=points.device)
            ids = torch.full_like(row, self.sample_id)
            draws = first + row % self.n_draws
            outputs.append(logits_of(self.defense, points[row // self.n_draws], ids, draws, Domain.ATTACK))
        logits = torch.cat(outputs)
        return logits.view(len(points), self.n_draws, logits.shape[1]).mean(1)


def _seed(seed: int, sample_id: int) -> int:
    """A generator seed for this image; unrelated for neighbouring seeds and ids."""
    digest = hashlib.blake2b(f"{seed} {sample_id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _published(module: str, name: str, purpose: str) -> Any:
    try:
        package = __import__(f"pyautoattack.{module}", fromlist=[name])
    except ImportError as error:
        raise MissingExtra("pyautoattack", "attacks", purpose) from error
    return getattr(package, name)
