"""Expectation over transformation: gradients and scores over many draws, batched over images and draws.

The attacker's draws come from domain ATTACK, decisions from domain EVALUATION: the noise an attack has adapted
to never decides about it, unless the target is frozen (``Defense.fixed``), where both know the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import finite, mistake
from ..kernels import Domain
from ..purify import Target
from ..shown import Fields

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, classes], labels [N] or [N, 2]) to losses [N]."""

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images [N, C, H, W], sample ids [N], draws [N]) to logits [N, classes], differentiable in the images."""

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images, labels, sample ids, draws) to (losses [N], logits [N, classes])."""


@dataclass(frozen=True, eq=False, repr=False)
class Query(Fields):
    """What an attack learns at a point, averaged over draws.

    Attributes:
        gradient: [B, C, H, W], mean gradient of the loss.
        loss: [B], mean loss.
        correct: float [B], share of the draws that are classified correctly.
        agreement: float64 [B], cosine between the mean gradients of two halves of the draws; NaN for one draw, or where
            one of them is zero.
    """

    gradient: Tensor
    loss: Tensor
    correct: Tensor
    agreement: Tensor


class Average:
    """Mean per image over all queries of an attack, of whatever each could measure; NaN where none could."""

    def __init__(self, like: Tensor) -> None:
        self.total = torch.zeros(len(like), dtype=torch.float64, device=like.device)
        self.count = torch.zeros_like(self.total)

    def add(self, values: Tensor, images: Tensor | None = None) -> None:
        """Count ``values`` [n] for these ``images`` [n], all of them if None; NaN counts for nothing."""
        where = slice(None) if images is None else images
        known = ~values.isnan()
        self.total[where] += torch.where(known, values, 0.0).double()
        self.count[where] += known

    @property
    def mean(self) -> Tensor:
        """float64 [B]."""
        return self.total / self.count


def attack_logits(target: Target) -> Logits:
    """The target itself as an attacker queries it: on its own draws."""
    return partial(_attack_logits, target)


def _attack_logits(target: Target, x: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
    return target.logits(x, ids, draws, Domain.ATTACK)


def objective(logits: Logits, loss: Loss) -> Objective:
    """A loss on logits as an objective."""

    def evaluate(x: Tensor, labels: Tensor, ids: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        outputs = logits(x, ids, draws)
        return loss(outputs, labels), outputs

    return evaluate


def query(
    goal: Objective,
    x: Tensor,
    labels: Tensor,
    ids: Tensor,
    draws: range,
    batch_size: int,
    later: Tensor | None = None,
) -> Query:
    """Mean over ``draws`` of gradient, loss and correctness.

    Args:
        goal: what is ascended.
        x: images [B, C, H, W] in [0, 1].
        labels: int64 [B], or [B, 2] with the true class first.
        ids: sample ids int64 [B].
        draws: the attack's draws, the same for every image.
        batch_size: most (image, draw) pairs in one pass.
        later: int64 [B], how many numbers later each image's draws are; the same if None.

    Raises:
        NonFiniteError: a gradient that is NaN or Inf, of finite logits.
        ValueError: no gradient.
    """
    n = len(draws)
    gradients = x.new_empty((len(x) * n, *x.shape[1:]))
    losses, correct = x.new_empty(len(x) * n), x.new_empty(len(x) * n)
    truth = labels if labels.dim() == 1 else labels[:, 0]
    for part, image, draw in pairs(len(x), draws, batch_size, x.device):
        point = x[image].detach().requires_grad_(True)
        draw = draw if later is None else draw + later[image]
        with torch.enable_grad():
            value, logits = goal(point, labels[image], ids[image], draw)
        require_gradient(value)
        (gradients[part],) = torch.autograd.grad(value.sum(), point)
        losses[part] = value.detach()
        correct[part] = (logits.detach().argmax(1) == truth[image]).to(x.dtype)
    # Filled by pair and summed in one order, the mean does not depend on how the pairs were cut into batches.
    by_draw = finite(gradients.view(len(x), n, *x.shape[1:]), ids, "the gradient of the attack's loss")
    return Query(
        by_draw.mean(1),
        losses.view(len(x), n).mean(1),
        correct.view(len(x), n).mean(1),
        _agreement(by_draw),
    )


def require_gradient(answer: Tensor) -> None:
    """Raise ValueError where ``answer`` to a differentiable image is cut off from it."""
    if not answer.requires_grad:
        remedy = (
            "Remove `detach` or `no_grad` inside it, or use an attack without gradients (SPSA, RayS, Square)"
        )
        raise ValueError(mistake("defense", "differentiable", "logits without a gradient", remedy))


def _agreement(gradients: Tensor) -> Tensor:
    """See ``Query.agreement``, of gradients [B, n, C, H, W]."""
    half = gradients.shape[1] // 2
    if not half:
        return gradients.new_full((len(gradients),), torch.nan, dtype=torch.float64)
    # In float64, because the square of a saturated classifier's gradient is zero in float32.
    halves = (gradients[:, :half], gradients[:, half : 2 * half])
    first, second = (part.mean(1).flatten(1).double() for part in halves)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def eot_gradient(
    target: Target,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    draws: range,
    loss: Loss,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Mean over ``draws`` of the exact gradient [B, C, H, W] and of the loss [B]; arguments as for ``query``."""
    found = query(objective(attack_logits(target), loss), x, y, ids, draws, batch_size)
    return found.gradient, found.loss


@torch.no_grad()
def score(
    target: Target,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    n_draws: int,
    batch_size: int,
    first: int = 0,
    seen: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """Whether each image is classified correctly on each of ``n_draws`` evaluation draws, bool [B, n_draws].

    The draws are ``first``, ``first`` + 1, ...; a deterministic target is asked once. ``seen`` is told of so many more
    (image, draw) pairs.
    """
    draws = range(first, first + (n_draws if target.is_random else 1))
    correct = torch.empty(len(x) * len(draws), dtype=torch.bool, device=x.device)
    for part, image, logits in answers(target, x, ids, draws, batch_size):
        correct[part] = logits.argmax(1) == y[image]
        seen(len(image))
    return correct.view(len(x), len(draws))


@torch.no_grad()
def answers(
    target: Target, x: Tensor, ids: Tensor, draws: range, batch_size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Evaluation of every image under every draw: (slice of the pairs, their images [n], logits [n, classes])."""
    for part, image, draw in pairs(len(x), draws, batch_size, x.device):
        yield part, image, target.logits(x[image], ids[image], draw, Domain.EVALUATION)


@torch.no_grad()
def mean_logits(logits: Logits, x: Tensor, ids: Tensor, draws: range, batch_size: int) -> Tensor:
    """Logits averaged over ``draws``, [B, classes]."""
    parts = [
        logits(x[image], ids[image], draw) for _, image, draw in pairs(len(x), draws, batch_size, x.device)
    ]
    stacked = torch.cat(parts) if parts else x.new_empty(0, 0)
    return stacked.view(len(x), len(draws), stacked.shape[1]).mean(1)


def counting(logits: Logits) -> tuple[list[int], Logits]:
    """A list that gets the number of pairs of every question, and ``logits`` to be asked them."""
    asked: list[int] = []

    def ask(x: Tensor, ids: Tensor, draws: Tensor) -> Tensor:
        asked.append(len(x))
        return logits(x, ids, draws)

    return asked, ask


def logits_at(target: Target, x: Tensor, ids: Tensor, first: Tensor, n_draws: int, batch_size: int) -> Tensor:
    """Logits [N, n_draws, classes] of points that each have attack draws of their own. Differentiable.

    Args:
        target: what is asked.
        x: points [N, C, H, W] in [0, 1], at least one.
        ids: sample ids int64 [N]; several points may be of one image.
        first: int64 [N]; point i is seen under the draws ``first[i]``, ``first[i]`` + 1, ...
        n_draws: how many.
        batch_size: most (point, draw) pairs in one network call.
    """
    outputs = []
    for pair in torch.arange(len(x) * n_draws, device=x.device).split(batch_size):
        point = pair // n_draws
        outputs.append(target.logits(x[point], ids[point], first[point] + pair % n_draws, Domain.ATTACK))
    logits = torch.cat(outputs)
    return logits.view(len(x), n_draws, logits.shape[1])


def pairs(
    n_images: int, draws: range, batch_size: int, device: torch.device
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """All (image, draw) pairs in batches: (slice of the pairs, index of the image [n], draw [n])."""
    # Image-major order: the pairs of one image stay together, so few images are touched by a batch.
    total = n_images * len(draws)
    for begin in range(0, total, batch_size):
        pair = torch.arange(begin, min(begin + batch_size, total), device=device)
        yield slice(begin, begin + len(pair)), pair // len(draws), draws.start + pair % len(draws)
