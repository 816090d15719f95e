"""Expectation over transformation: gradients and scores over many draws, batched over images and draws.

The attacker's draws come from domain ATTACK, decisions from domain EVALUATION: the noise an attack has adapted
to never decides about it, unless the defence is frozen (``Defense.fixed``), where both know the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..classifiers.base import call_frozen, require_eval
from ..kernels import Domain
from ..purify import Defense

Loss = Callable[[Tensor, Tensor], Tensor]


def is_random(defense: nn.Module) -> bool:
    """Whether repeated calls see different noise."""
    return isinstance(defense, Defense) and defense.fixed_draw is None


def logits_of(defense: nn.Module, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
    """Logits of a defence for these (image, draw) rows; any other module is called as it is."""
    if not isinstance(defense, Defense):
        require_eval(defense, "defense")
        return call_frozen(defense, x)
    if defense.fixed_draw is not None:
        return defense(x, ids, defense.fixed_draw)
    return defense(x, ids, draws, domain=domain)


def eot_gradient(
    defense: nn.Module,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    draws: range,
    loss: Loss,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Mean over ``draws`` of the gradient and of the loss.

    Args:
        x: images [B, C, H, W] in [0, 1].
        y: labels int64 [B].
        ids: sample ids int64 [B].
        draws: the attack's draws, the same for every image.
        batch_size: most (image, draw) rows in one pass.

    Returns:
        gradient [B, C, H, W] and loss [B].
    """
    n = len(draws)
    gradients = x.new_empty((len(x) * n, *x.shape[1:]))
    losses = x.new_empty(len(x) * n)
    for rows, image, draw in _rows(len(x), draws, batch_size, x.device):
        point = x[image].detach().requires_grad_(True)
        with torch.enable_grad():
            value = loss(logits_of(defense, point, ids[image], draw, Domain.ATTACK), y[image])
        (gradients[rows],) = torch.autograd.grad(value.sum(), point)
        losses[rows] = value.detach()
    # Filled by row and summed in one order, the mean does not depend on how the rows were cut into batches.
    return gradients.view(len(x), n, *x.shape[1:]).mean(1), losses.view(len(x), n).mean(1)


@torch.no_grad()
def score(defense: nn.Module, x: Tensor, y: Tensor, ids: Tensor, n_draws: int, batch_size: int) -> Tensor:
    """Whether each image is classified correctly on each of ``n_draws`` evaluation draws, bool [B, n_draws]."""
    draws = range(n_draws if is_random(defense) else 1)
    correct = torch.empty(len(x) * len(draws), dtype=torch.bool, device=x.device)
    for rows, image, draw in _rows(len(x), draws, batch_size, x.device):
        logits = logits_of(defense, x[image], ids[image], draw, Domain.EVALUATION)
        correct[rows] = logits.argmax(1) == y[image]
    return correct.view(len(x), len(draws))


def _rows(
    n_images: int, draws: range, batch_size: int, device: torch.device
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    # Image-major order: the rows of one image stay together, so few images are touched by a batch.
    total = n_images * len(draws)
    for begin in range(0, total, batch_size):
        row = torch.arange(begin, min(begin + batch_size, total), device=device)
        image = row // len(draws)
        yield slice(begin, begin + len(row)), image, draws.start + row % len(draws)
