"""Losses an attack ascends: per image, larger is worse for the defence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)_y, [B]."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best other logit minus the true one, [B]; positive means misclassified (Carlini and Wagner 2017)."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


LOSSES = {
    "ce": cross_entropy,
    "margin": margin,
}
"""Every attack loss by name."""
