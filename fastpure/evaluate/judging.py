"""Predicted classes and losses of a defence on the draws of a protocol."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..attacks.gradient import answers
from ..attacks.losses import cross_entropy
from ..errors import mistake
from ..purify import Target
from .protocol import FIRST_DRAW, Protocol
from .record import Judged


def frozen(target: Target, protocol: Protocol) -> AbstractContextManager[object]:
    """The target as the attacker knows it: frozen to one draw where the protocol says so.

    Raises:
        ValueError: the caller froze the defence himself, but the protocol wants fresh noise; or it draws noise of its
            own, which no protocol can know.
    """
    if protocol.noise == "known":
        if target.own_noise:
            remedy = "Use the protocol fresh"
            got = (
                f"one whose {target.own_noise} draws noise of its own"
                if target.numbered
                else "a random module"
            )
            raise ValueError(mistake("defense", f"one whose noise {protocol} can hold", got, remedy))
        return target.fixed(protocol.fixed_draw, protocol.part) if target.numbered else nullcontext()
    if target.frozen:
        remedy = "Evaluate outside `with defense.fixed()`, or use the protocol dw_box"
        raise ValueError(mistake("protocol", "dw_box for a frozen defence", str(protocol), remedy))
    return nullcontext()


def even(total: int, batch_size: int) -> int:
    """The batch size up to ``batch_size`` that cuts ``total`` pairs into equal parts.

    A small remainder would be slow, and libraries compute very small batches with other kernels, whose rounding
    differs in the last bits.
    """
    return max(-(-total // max(-(-total // batch_size), 1)), 1)


@torch.no_grad()
def judge(
    target: Target, x: Tensor, y: Tensor, ids: Tensor, n_draws: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Classes int64 [B, K] and cross-entropies float32 [B, K] on evaluation draws; K = 1 if nothing is random.

    Args:
        target: what is judged.
        x: images [B, C, H, W] in [0, 1].
        y: labels int64 [B].
        ids: sample ids int64 [B].
        n_draws: fresh draws per image.
        batch_size: most (image, draw) pairs in one network call.
    """
    draws = range(FIRST_DRAW, FIRST_DRAW + (n_draws if target.is_random else 1))
    total = len(x) * len(draws)
    predicted = torch.empty(total, dtype=torch.int64, device=x.device)
    loss = torch.empty(total, dtype=torch.float32, device=x.device)
    for part, image, logits in answers(target, x, ids, draws, even(total, batch_size)):
        predicted[part] = logits.argmax(1)
        loss[part] = cross_entropy(logits.float(), y[image])
    return predicted.view(len(x), len(draws)), loss.view(len(x), len(draws))


def judged(predicted: Tensor, loss: Tensor) -> list[Judged]:
    """The same, as one `Judged` per image."""
    classes, losses = predicted.cpu().numpy(), loss.cpu().numpy()
    return [Judged(classes[i].copy(), losses[i].copy()) for i in range(len(classes))]
