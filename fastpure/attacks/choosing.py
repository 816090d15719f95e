"""Which of several candidates an image gets: the one that fewest draws classify correctly.

The choice is made on evaluation draws that no member has seen, and the frame judges the chosen image on others. The
minimum of noisy scores is below all of them by chance: judged on the draws that chose it, a candidate looks better
than it is, the more so the more candidates there were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import Attack, Count, Problem, Proposal, Tick
from .gradient import Average, score
from .ledger import FORWARD, Ledger
from .weakness import Effort

Share = Callable[[Problem, Tensor, int], Tensor]
"""(some of the images, a candidate for each, number of its member, 0 for the images themselves) to how many of the
choosing draws are correct, float64 [n] in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """What came of it.

    Attributes:
        x: the chosen images [B, C, H, W].
        correct: share of their choosing draws that are correct, float64 [B].
        losses: of all members one after the other, [n, B]; NaN where an image was not attacked (any more).
        flat: for each member that follows a gradient its number, which images it was given [n], and where the first
            gradient was zero, bool [n].
        agreement: float64 [B], mean over the members that measured it.
        ledger: what all members and the choosing draws have cost; None where a member does not say.
        notes: what members meant to do and did not, each with the reason.
    """

    x: Tensor
    correct: Tensor
    losses: Tensor
    flat: list[tuple[int, Tensor, Tensor]]
    agreement: Tensor
    ledger: Ledger | None
    notes: tuple[str, ...] = ()

    def counted(self, proposal: Proposal) -> Proposal:
        """``proposal`` with what is known of costs, and what members left out."""
        noted = replace(proposal, notes=(*proposal.notes, *self.notes))
        return noted if self.ledger is None else self.ledger.into(noted)


def choose(problem: Problem, members: Sequence[Attack], share: Share, n_draws: int, tick: Tick) -> Chosen:
    """Run the members in turn and keep for each image the candidate of the fewest correct draws.

    ``share`` looks at ``n_draws``. A tie goes to the first candidate that is not the image itself. An image of which no
    draw is correct any more is not given to later members, which could find nothing worse.
    """
    best, correct = problem.x.clone(), share(problem, problem.x, 0)
    ledger, counts = Ledger(problem.x), True
    look = FORWARD * (n_draws if problem.target.is_random else 1)
    ledger.charge(look)
    histories: list[Tensor] = []
    notes: list[str] = []
    flat, agreement = [], Average(problem.x)
    for number, member in enumerate(members, start=1):
        chosen = (correct > 0).nonzero()[:, 0]
        if not len(chosen):
            break
        part, done = problem.part(chosen), sum(len(history) for history in histories)
        with member.conditions(problem.target):
            proposal = member.propose(part, lambda i, loss, done=done: tick(done + i, loss))  # type: ignore[misc]
        candidate, _ = member.admit(proposal, part)
        found = share(part, candidate, number)
        notes += [f"{type(member).__name__}: {note}" for note in proposal.notes]
        counts &= proposal.spent is not None or not member.asks
        ledger.member(proposal, chosen)
        ledger.charge(look, chosen)
        untouched = (best[chosen] == part.x).flatten(1).all(1)
        better = (found < correct[chosen]) | ((found == correct[chosen]) & untouched)
        best[chosen[better]], correct[chosen[better]] = candidate[better], found[better]
        if proposal.zero_gradients is not None:
            flat.append((number, chosen, proposal.zero_gradients))
        if proposal.agreement is not None:
            agreement.add(proposal.agreement, chosen)
        wide = proposal.losses.new_full((len(proposal.losses), len(problem.x)), torch.nan)
        wide[:, chosen] = proposal.losses
        histories.append(wide)
    losses = torch.cat(histories) if histories else problem.x.new_empty((0, len(problem.x)))
    said = tuple(dict.fromkeys(notes))
    return Chosen(best, correct, losses, flat, agreement.mean, ledger if counts else None, said)


def planned_choice(members: Sequence[Attack], looks: int, count: Count) -> tuple[float, float]:
    """``Attack.planned`` of one that lets ``choose`` look ``looks`` times at the images and at each candidate."""
    gradients, judgements = zip(*map(count, members), strict=True)
    return sum(gradients), sum(judgements) + looks * (1 + len(members))


def share_correct(problem: Problem, x: Tensor, first: int, n_draws: int, batch_size: int) -> Tensor:
    """Share of ``n_draws`` evaluation draws from ``first`` on that classify ``x`` [B, C, H, W] correctly, [B]."""
    judged = score(problem.target, x, problem.y, problem.ids, n_draws, batch_size, first)
    return judged.double().mean(1)


def effort_of(members: Sequence[Attack], n_classes: int, left_out: Sequence[str] = ()) -> Effort:
    """That of the member which spends most, because the best of them counts; ``left_out`` are further notes."""
    efforts = [member.effort(n_classes) for member in members]
    return Effort(
        steps=max(effort.steps for effort in efforts),
        queries=max(effort.queries for effort in efforts),
        draws=max(effort.draws for effort in efforts),
        noisy=any(effort.noisy for effort in efforts),
        left_out=(*(note for effort in efforts for note in effort.left_out), *left_out),
    )
