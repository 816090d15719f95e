"""Denoised smoothing's base classifier (Carlini et al. 2022): one denoising step, then a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from torch import Tensor

from ..kernels import NoiseKeys
from .base import DenoisedBase


@final
class OneShotClassifier(DenoisedBase):
    """Logits of images in [0, 1] that carry Gaussian noise of known deviation ``sigma``.

    The predicted clean image, clamped to [0, 1], goes to the classifier. Whatever this function does, smoothing it
    certifies the result. Arguments and errors as for ``DenoisedBase``. Its ``settings`` are empty: files of
    certificates are older than the choice, and mean this one where they say nothing.
    """

    combine = "logits"

    def versions(self, noisy: Tensor, keys: NoiseKeys) -> Iterator[Tensor]:
        """The one estimate."""
        yield self.clean(noisy)
