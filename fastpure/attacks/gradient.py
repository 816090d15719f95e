"""Expectation over transformation: gradients and scores over many draws, batched over images and draws.

The attacker's draws come from domain ATTACK, decisions from domain EVALUATION: the noise an attack has adapted
to never decides about it, unless the defence is frozen (``Defense.fixed``), where both know the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..classifiers.base import call_frozen, require_eval
from ..kernels import Domain
from ..purify import Defense

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, classes], labels [N] or [N, 2]) to losses [N]."""

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images [N, C, H, W], sample ids [N], draws [N]) to logits [N, classes], differentiable in the images."""

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images, labels, sample ids, draws) to (losses [N], logits [N, classes])."""


@dataclass(frozen=True, eq=False)
class Query:
    """What an attack learns at a point, averaged over draws.

    Attributes:
        gradient: [B, C, H, W], mean gradient of the loss.
        loss: [B], mean loss.
        correct: float [B], share of the draws that are classified correctly.
    """

    gradient: Tensor
    loss: Tensor
    correct: Tensor


def is_random(defense: nn.Module) -> bool:
    """Whether repeated calls see different noise."""
    return isinstance(defense, Defense) and defense.fixed_draw is None


def realisation(defense: Defense, draws: Tensor | None, domain: Domain) -> tuple[int | Tensor | None, Domain]:
    """The draw and domain to call ``defense`` with: those asked for, or the frozen ones."""
    return (draws, domain) if defense.fixed_draw is None else (defense.fixed_draw, Domain.DEFENSE)


def logits_of(defense: nn.Module, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
    """Logits of a defence for these (image, draw) rows; any other module is called as it is."""
    if not isinstance(defense, Defense):
        require_eval(defense, "defense")
        return call_frozen(defense, x)
    draw, domain = realisation(defense, draws, domain)
    return defense(x, ids, draw, domain=domain)


def attack_logits(defense: nn.Module) -> Logits:
    """The defence itself as an attacker queries it: on its own draws."""
    return partial(_attack_logits, defense)


def _attack_logits(defense: nn.Module, x: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
    return logits_of(defense, x, ids, draws, Domain.ATTACK)


def objective(logits: Logits, loss: Loss) -> Objective:
    """A loss on logits as an objective."""

    def evaluate(x: Tensor, labels: Tensor, ids: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        outputs = logits(x, ids, draws)
        return loss(outputs, labels), outputs

    return evaluate


def query(goal: Objective, x: Tensor, labels: Tensor, ids: Tensor, draws: range, batch_size: int) -> Query:
    """Mean over ``draws`` of gradient, loss and correctness.

    Args:
        goal: what is ascended.
        x: images [B, C, H, W] in [0, 1].
        labels: int64 [B], or [B, 2] with the true class first.
        ids: sample ids int64 [B].
        draws: the attack's draws, the same for every image.
        batch_size: most (image, draw) rows in one pass.
    """
    n = len(draws)
    gradients = x.new_empty((len(x) * n, *x.shape[1:]))
    losses, correct = x.new_empty(len(x) * n), x.new_empty(len(x) * n)
    truth = labels if labels.dim() == 1 else labels[:, 0]
    for rows, image, draw in _rows(len(x), draws, batch_size, x.device):
        point = x[image].detach().requires_grad_(True)
        with torch.enable_grad():
            value, logits = goal(point, labels[image], ids[image], draw)
        (gradients[rows],) = torch.autograd.grad(value.sum(), point)
        losses[rows] = value.detach()
        correct[rows] = (logits.detach().argmax(1) == truth[image]).to(x.dtype)
    # Filled by row and summed in one order, the mean does not depend on how the rows were cut into batches.
    return Query(
        gradients.view(len(x), n, *x.shape[1:]).mean(1),
        losses.view(len(x), n).mean(1),
        correct.view(len(x), n).mean(1),
    )


def eot_gradient(
    defense: nn.Module,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    draws: range,
    loss: Loss,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Mean over ``draws`` of the exact gradient [B, C, H, W] and of the loss [B]; arguments as for ``query``."""
    found = query(objective(attack_logits(defense), loss), x, y, ids, draws, batch_size)
    return found.gradient, found.loss


@torch.no_grad()
def score(
    defense: nn.Module, x: Tensor, y: Tensor, ids: Tensor, n_draws: int, batch_size: int, first: int = 0
) -> Tensor:
    """Whether each image is classified correctly on each of ``n_draws`` evaluation draws, bool [B, n_draws].

    The draws are ``first``, ``first`` + 1, ...; a deterministic defence is asked once.
    """
    draws = range(first, first + (n_draws if is_random(defense) else 1))
    correct = torch.empty(len(x) * len(draws), dtype=torch.bool, device=x.device)
    for rows, image, draw in _rows(len(x), draws, batch_size, x.device):
        logits = logits_of(defense, x[image], ids[image], draw, Domain.EVALUATION)
        correct[rows] = logits.argmax(1) == y[image]
    return correct.view(len(x), len(draws))


@torch.no_grad()
def mean_logits(logits: Logits, x: Tensor, ids: Tensor, draws: range, batch_size: int) -> Tensor:
    """Logits averaged over ``draws``, [B, classes]."""
    parts = [
        logits(x[image], ids[image], draw) for _, image, draw in _rows(len(x), draws, batch_size, x.device)
    ]
    stacked = torch.cat(parts) if parts else x.new_empty(0, 0)
    return stacked.view(len(x), len(draws), stacked.shape[1]).mean(1)


def _rows(
    n_images: int, draws: range, batch_size: int, device: torch.device
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    # Image-major order: the rows of one image stay together, so few images are touched by a batch.
    total = n_images * len(draws)
    for begin in range(0, total, batch_size):
        row = torch.arange(begin, min(begin + batch_size, total), device=device)
        image = row // len(draws)
        yield slice(begin, begin + len(row)), image, draws.start + row % len(draws)
