"""What a method does to the image before its table sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Preparation(ABC):
    """A deterministic function of the image, applied once. Implementations are frozen dataclasses and pure functions.

    A purifier applies it outside of the loop, so rows, memory plans and executors do not know of it; its derivative
    is a factor of the exact gradient. Sample i of the result depends on sample i of the input only.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The prepared images, [B, C, H, W] like ``x``, both in units where images are [-1, 1]; differentiable."""

    def check_images(self, shape: tuple[int, int, int]) -> None:  # noqa: B027
        """Raise ValueError if images of this (C, H, W) cannot be prepared."""
