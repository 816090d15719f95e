"""What the inner loops of ADDT and ADBM share: the network as a constant, and the classifier's gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...classifiers import call_frozen
from ...nets import Denoiser
from .base import evaluation_mode, frozen_weights

__all__ = ["Network", "classification_gradient", "inner_network"]

Network = Callable[[Tensor, Tensor], Tensor]
"""(state [B, C, H, W], labels [B]) -> the network's answer, float32."""


@contextmanager
def inner_network(model: nn.Module, dropout: bool) -> Iterator[Network]:
    """``model`` with its weights as constants, for gradients with respect to its input only.

    Under autocast a `Denoiser` becomes a half-precision copy instead: the functions that save memory for
    frozen weights work in the dtype of those weights. ``dropout`` says whether dropout acts.
    """
    kind = next(model.parameters()).device.type
    half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if half is not None and isinstance(model, Denoiser):
        copy = model.cast(half).train(dropout and model.training)

        def answer(x: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(kind, enabled=False):
                return copy(x.to(half), labels).float()

        yield answer
        return
    with frozen_weights(model), nullcontext() if dropout else evaluation_mode(model):
        yield lambda x, labels: model(x, labels).float()


def classification_gradient(
    classifier: nn.Module, labels: Tensor, delta: Tensor, clean_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gradient with respect to ``delta`` of the classifier's cross-entropy on ``clean_of(delta)``, [B, C, H, W].

    ``clean_of`` gives images in [-1, 1]; they are not clamped. The sum over the batch is differentiated, so
    that an image's gradient does not depend on the others.
    """
    point = delta.detach().requires_grad_(True)
    logits = call_frozen(classifier, (clean_of(point) + 1) / 2)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels, reduction="sum"), point)
    return gradient
