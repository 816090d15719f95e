"""Predicted classes and losses of a defence on the draws of a protocol."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..attacks.gradient import is_random, logits_of
from ..attacks.losses import cross_entropy
from ..errors import mistake
from ..kernels import Domain
from ..purify import Defense
from .protocol import FIRST_DRAW, Protocol
from .record import Judged


def frozen(defense: nn.Module, protocol: Protocol) -> AbstractContextManager[object]:
    """The defence as the attacker knows it: frozen to one draw where the protocol says so.

    Raises:
        ValueError: the caller froze the defence himself, but the protocol wants fresh noise.
    """
    if not isinstance(defense, Defense):
        return nullcontext()
    if protocol.noise == "known":
        return defense.fixed(protocol.fixed_draw, protocol.part)
    if defense.fixed_draw is not None:
        remedy = "Evaluate outside `with defense.fixed()`, or use the protocol dw_box"
        raise ValueError(mistake("protocol", "dw_box for a frozen defence", str(protocol), remedy))
    return nullcontext()


def even(total: int, rows: int) -> int:
    """The batch size up to ``rows`` that cuts ``total`` rows into equal parts.

    A small remainder would be slow, and libraries compute very small batches with other kernels, whose rounding
    differs in the last bits.
    """
    return max(-(-total // max(-(-total // rows), 1)), 1)


@torch.no_grad()
def judge(
    defense: nn.Module, x: Tensor, y: Tensor, ids: Tensor, n_draws: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Classes int64 [B, K] and cross-entropies float32 [B, K] on evaluation draws; K = 1 if nothing is random.

    Args:
        x: images [B, C, H, W] in [0, 1]; y: labels int64 [B]; ids: sample ids int64 [B].
        n_draws: fresh draws per image.
        rows: most (image, draw) pairs in one network call.
    """
    n = n_draws if is_random(defense) else 1
    total = len(x) * n
    rows = even(total, rows)
    predicted = torch.empty(total, dtype=torch.int64, device=x.device)
    loss = torch.empty(total, dtype=torch.float32, device=x.device)
    for begin in range(0, total, rows):
        row = torch.arange(begin, min(begin + rows, total), device=x.device)
        image = row // n
        logits = logits_of(defense, x[image], ids[image], FIRST_DRAW + row % n, Domain.EVALUATION)
        predicted[row] = logits.argmax(1)
        loss[row] = cross_entropy(logits.float(), y[image])
    return predicted.view(len(x), n), loss.view(len(x), n)


def judged(predicted: Tensor, loss: Tensor) -> list[Judged]:
    """The same, as one `Judged` per image."""
    classes, losses = predicted.cpu().numpy(), loss.cpu().numpy()
    return [Judged(classes[i].copy(), losses[i].copy()) for i in range(len(classes))]


@torch.no_grad()
def count_classes(defense: nn.Module, x: Tensor) -> int:
    """How many classes the defence tells apart; ``x`` is any image [1, C, H, W]."""
    head = defense.classifier if isinstance(defense, Defense) else defense
    return int(head(x).shape[1])


@torch.no_grad()
def require_repeatable(defense: nn.Module, x: Tensor) -> None:
    """Raise ValueError if a module that is no ``Defense`` answers differently when asked twice.

    Its randomness would be outside the library's control: attack and decision noise could not be told apart, and
    one draw would decide where the protocol promises many.
    """
    if isinstance(defense, Defense) or not len(x):
        return
    first, second = defense(x), defense(x)
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise ValueError(
            mistake(
                "defense",
                "deterministic, or a fastpure.Defense",
                "a module that answers differently each time",
            )
        )
