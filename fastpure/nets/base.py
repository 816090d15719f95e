"""What a network must offer for its time embedding to be computed once per table."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class HoistedNetwork(nn.Module, ABC):
    """A network that splits into what depends on the label only and the rest.

    All images of a batch share the noise label of the step, and every purification with the same table walks
    through the same labels, so the first part is computed once and reaches the second as one row.
    """

    @abstractmethod
    def embedding(self, labels: Tensor) -> Tensor:
        """Rows [N, S] in the network's dtype for labels [N]."""

    @abstractmethod
    def body(self, x: Tensor, rows: Tensor) -> Tensor:
        """Output for images [B, C, H, W] and rows [1, S] (one label for all images) or [B, S]."""
