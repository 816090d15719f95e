"""What a network must offer for its time embedding to be computed once per table; checks of shapes and classes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..errors import mistake, whole


class HoistedNetwork(nn.Module, ABC):
    """A network that splits into what depends on the label only and the rest.

    All images of a batch share the noise label of the step, and every purification with the same table walks
    through the same labels, so the first part is computed once and reaches the second as one vector.
    """

    @abstractmethod
    def embedding(self, labels: Tensor) -> Tensor:
        """Embeddings [N, S] of labels [N], in the network's dtype."""

    @abstractmethod
    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Output for images [B, C, H, W] and their embedding, [1, S] (one label for all images) or [B, S]."""


def checked_shape(shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """``shape`` as three positive integers; ValueError if it is not."""
    if not isinstance(shape, tuple | list | torch.Size) or len(shape) != 3:
        raise ValueError(mistake("image_shape", "(channels, height, width)", repr(shape)))
    channels, height, width = (whole("image_shape", value, 1) for value in shape)
    return channels, height, width


LARGEST = {"image_size": 8192, "channels": 1024, "width": 65536, "count": 4096, "classes": 1_000_000}
"""Sizes beyond which a configuration is a mistake or an attack on memory and time, not a network."""

_MOST_LEVELS, _MOST_BLOCKS = 12, 512


def check_depth(levels: int, n_blocks: int) -> None:
    """Raise ValueError where so many levels of so many blocks would take for ever to be laid out."""
    if levels > _MOST_LEVELS:
        raise ValueError(mistake("config", f"of at most {_MOST_LEVELS} levels", levels))
    if levels * n_blocks > _MOST_BLOCKS:
        expected = f"such that all levels have {_MOST_BLOCKS} blocks at most"
        raise ValueError(mistake("n_blocks", expected, f"{n_blocks} in each of {levels}"))


def check_class(classes: int | None, class_label: int | None) -> None:
    """Raise unless the label is one of so many classes, or None."""
    if classes is not None:
        whole("classes", classes, 1, LARGEST["classes"])
    if class_label is not None:
        if classes is None:
            raise ValueError(mistake("class_label", "None for a network without classes", class_label))
        whole("class_label", class_label, 0, classes - 1)


def same_layout(output: Tensor, x: Tensor) -> Tensor:
    """``output`` in the memory format of ``x``."""
    if x.is_contiguous():
        return output.contiguous()
    return output.contiguous(memory_format=torch.channels_last)
