"""Losses an attack ascends: per image, larger is worse for the defence.

``labels`` is int64 [B], the true classes, or [B, 2], the true and the target class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import mistake

TINY = 1e-12
"""Keeps the ratios below finite where logits are equal; the value of the reference implementation of APGD."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)_y, [B]."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best other logit minus the true one, [B]; positive means misclassified (Carlini and Wagner 2017)."""
    return _best_other(logits, labels) - _of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, [B] (Croce and Hein 2020, eq. 6): margin over (largest - third largest).

    Invariant to shift and scale of the logits, so that overconfidence does not make its gradient vanish.

    Raises:
        ValueError: fewer than three classes.
    """
    require_classes(logits.shape[1], 3, "dlr", "Use loss='ce' or loss='margin'")
    ranked = logits.sort(1, descending=True).values
    return margin(logits, labels) / (ranked[:, 0] - ranked[:, 2] + TINY)


def dlr_targeted(logits: Tensor, labels: Tensor) -> Tensor:
    """Targeted DLR, [B] (Croce and Hein 2020, eq. 7), for ``labels`` [B, 2].

    Raises:
        ValueError: fewer than four classes.
    """
    require_classes(logits.shape[1], 4, "dlr-targeted", "Use the untargeted loss 'dlr', or 'ce'")
    ranked = logits.sort(1, descending=True).values
    scale = ranked[:, 0] - 0.5 * (ranked[:, 2] + ranked[:, 3]) + TINY
    return (_of(logits, labels[:, 1]) - _of(logits, labels[:, 0])) / scale


def cross_entropy_targeted(logits: Tensor, labels: Tensor) -> Tensor:
    """log softmax(logits)_t of the target, [B], for ``labels`` [B, 2]."""
    return -cross_entropy(logits, labels[:, 1])


def margin_targeted(logits: Tensor, labels: Tensor) -> Tensor:
    """Target logit minus the best other one, [B], for ``labels`` [B, 2]; positive means classified as the target."""
    return -margin(logits, labels[:, 1])


def require_classes(n_classes: int, least: int, loss: str, remedy: str) -> None:
    """Raise ValueError if there are fewer than ``least`` classes."""
    if n_classes < least:
        expected = f"a loss for {n_classes} classes ({loss} needs {least})"
        raise ValueError(mistake("loss", expected, repr(loss), remedy))


def _of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]


def _best_other(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1)


LOSSES = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
}
"""Every untargeted attack loss by name."""

TARGETED = {
    "ce": cross_entropy_targeted,
    "margin": margin_targeted,
    "dlr": dlr_targeted,
}
"""Every loss of a targeted attack, by the name of the untargeted one."""
