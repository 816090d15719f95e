"""Networks that are told the class of an image: what they add to their embedding, and checks of what is told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import mistake, one_of, whole
from .base import LARGEST


def check_class(classes: int | None, class_label: int | None, null_class: bool) -> None:
    """Raise unless the label is one of so many classes, or None, and only a network with classes has a null class."""
    one_of("null_class", null_class, (False, True))
    if null_class and classes is None:
        raise ValueError(mistake("null_class", "False for a network without classes", "True"))
    if classes is not None:
        whole("classes", classes, 1, LARGEST["classes"])
    if class_label is not None:
        if classes is None:
            raise ValueError(mistake("class_label", "None for a network without classes", class_label))
        whole("class_label", class_label, 0, classes - 1)


def class_vectors(
    table: Tensor | None, classes: Tensor | None, class_label: int | None, dtype: torch.dtype
) -> Tensor | None:
    """What the classes add to an embedding, [N, width] or [width] in ``dtype``; None where they add nothing.

    Args:
        table: one vector per class [n, width]; None for a network without classes.
        classes: int64 [N] in [-1, n), -1 for no class at all; None for ``class_label``.
        class_label: the one class that a network is always told, if any.

    Raises:
        ValueError: classes for a network that has none.
    """
    if table is None:
        if classes is not None:
            raise ValueError(mistake("classes", "None for a network without classes", list(classes.shape)))
        return None
    if classes is None:
        return None if class_label is None else table[class_label].to(dtype)
    return table[classes.clamp_min(0)].to(dtype) * (classes >= 0)[:, None].to(dtype)


def checked_classes(classes: Tensor, batch: int, n_classes: int, null_class: bool) -> Tensor:
    """``classes`` if they are int64 [batch] in [0, n_classes), or -1 where ``null_class``; ValueError if not."""
    if not n_classes:
        raise ValueError(mistake("classes", "None for a denoiser without classes", list(classes.shape)))
    if classes.dtype != torch.int64 or tuple(classes.shape) != (batch,):
        got = f"{classes.dtype} {list(classes.shape)}"
        raise ValueError(mistake("classes", f"int64 of shape [{batch}]", got))
    low = -1 if null_class else 0
    if batch and not low <= int(classes.min()) <= int(classes.max()) < n_classes:
        got = f"{int(classes.min())} to {int(classes.max())}"
        raise ValueError(mistake("classes", f"in [{low}, {n_classes - 1}]", got))
    return classes


class OneClass(nn.Module):
    """Somebody's class-conditional network that is always told the same class."""

    def __init__(self, network: nn.Module, class_label: int) -> None:
        super().__init__()
        self.network, self.class_label = network, class_label

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """``network(x, labels, classes)``, [B, C, H, W]."""
        return self.network(x, labels, torch.full_like(labels, self.class_label, dtype=torch.int64))

    def extra_repr(self) -> str:
        """The class, for printing and for what identifies the network."""
        return f"class_label={self.class_label}"
