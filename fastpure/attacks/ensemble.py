"""Several attacks and runs together, without the luck of having looked often."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, cast, final

import torch
from torch import Tensor

from ..errors import mistake, whole
from .base import Attack, Count, NormAttack, Problem, Proposal, Tick
from .budget import Budget
from .choosing import choose, effort_of, planned_choice, share_correct
from .weakness import Effort


@final
@dataclass(frozen=True, kw_only=True)
class Ensemble(NormAttack):
    """For each image the worst candidate of several attacks, chosen on draws of its own and judged on fresh ones.

    The minimum over attacks of what each leaves of an image, taken on the draws that are reported, falls with their
    number even where none of them does anything: of an image that is right on half of the draws, K looks at one draw
    leave 2^-K. Here ``choosing_draws`` evaluation draws that no member has seen compare the candidates; the verdict is
    the frame's, on others. A tie goes to the first candidate that is not the image itself.

    Each member keeps its own settings, its gradient mode among them; the ensemble itself differentiates nothing.

    Attributes:
        attacks: the members, in their order: attacks in one and the same ball. Images of finished runs join with
            `fastpure.Run.as_attack`.
        choosing_draws: evaluation draws on which candidates are compared; one where nothing is random.
        norm, eps: the members' budget, see `Budget`; not to be given.
        seed: added to the members' own: other seeds are other restarts of all of them.

    Raises:
        TypeError: a member is no attack.
        ValueError: no members, or not all in one ball.
    """

    attacks: tuple[Attack, ...] = field(kw_only=False)
    norm: str = field(init=False, default="Linf")
    eps: float = field(init=False, default=8 / 255)
    choosing_draws: int = 20

    def __post_init__(self) -> None:
        given: Any = self.attacks
        attacks = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not attacks:
            raise ValueError(mistake("attacks", "at least one attack", "none"))
        for member in attacks:
            if not isinstance(member, Attack):
                remedy = "Use run.as_attack() for the images of a run"
                raise TypeError(mistake("attacks", "attacks", type(member).__name__, remedy))
        budgets = [member.admissible for member in attacks]
        if len(set(budgets)) > 1 or not isinstance(budgets[0], Budget):
            got = ", ".join(dict.fromkeys(f"{type(a).__name__} in {_text(a)}" for a in attacks))
            raise ValueError(mistake("attacks", "attacks in one ball, of the same norm and eps", got))
        for name, value in (("attacks", attacks), ("norm", budgets[0].norm), ("eps", budgets[0].eps)):
            object.__setattr__(self, name, value)
        super().__post_init__()
        whole("choosing_draws", self.choosing_draws, minimum=1)
        # Images that share the budget of a member share that of the whole.
        object.__setattr__(self, "shares", any(member.shares for member in attacks))

    def members(self) -> list[Attack]:
        """The attacks as they are run: judged on as many draws as the ensemble, with its batches, seeds moved on."""
        return [self._member(attack) for attack in self.attacks]

    def iterations(self) -> int:
        """See ``Attack.iterations``; those of all members."""
        return sum(member.iterations() for member in self.attacks)

    def eot(self) -> int:
        """See ``Attack.eot``."""
        return max(member.eot() for member in self.attacks)

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return effort_of(self.attacks, n_classes)

    def planned(self, random: bool, n_classes: int, count: Count) -> tuple[float, float]:
        """See ``Attack.planned``; the members', and the comparison of their candidates and of the images themselves."""
        return planned_choice(self.members(), self.choosing_draws if random else 1, count)

    def spoken_for(self) -> int:
        """See ``Attack.spoken_for``."""
        return self._first() + self.choosing_draws

    def named(self, sample_ids: Tensor) -> Attack:
        """See ``Attack.named``."""
        return replace(self, attacks=tuple(member.named(sample_ids) for member in self.attacks))

    def for_counting(self) -> Attack:
        """See ``Attack.for_counting``."""
        return replace(self, attacks=tuple(member.for_counting() for member in self.attacks))

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The chosen candidates."""
        first = self._first()

        def share(part: Problem, x: Tensor, number: int) -> Tensor:
            return share_correct(part, x, first, self.choosing_draws, self.batch_size)

        chosen = choose(problem, self.members(), share, self.choosing_draws, tick)
        flat: Tensor | None = None
        if chosen.flat:
            # Robustness of an image is not shown where no gradient could move it.
            tried = torch.zeros_like(problem.y)
            stuck = torch.zeros_like(problem.y)
            for _, images, zero in chosen.flat:
                tried[images] += 1
                stuck[images] += zero.to(stuck.dtype)
            flat = (tried > 0) & (stuck == tried)
        return chosen.counted(Proposal(chosen.x, chosen.losses, flat, agreement=chosen.agreement))

    def _first(self) -> int:
        """The first draw that neither the verdict nor the choices of any member take."""
        return max(member.spoken_for() for member in self.members())

    def _member(self, attack: Attack) -> Attack:
        settings: dict[str, Any] = {"eval_draws": self.eval_draws, "batch_size": self.batch_size}
        if self.seed and "seed" in {field.name for field in fields(attack)}:  # type: ignore[arg-type]
            settings["seed"] = (cast(NormAttack, attack).seed + self.seed) % 2**64
        return replace(attack, **settings)  # type: ignore[type-var]


def _text(attack: Attack) -> str:
    budget = attack.admissible
    return f"{budget.norm} {budget.eps:g}" if isinstance(budget, Budget) else "no ball"
