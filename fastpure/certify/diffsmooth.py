"""DiffSmooth (Zhang et al., USENIX Security 2023): one denoising step, then the classifier around its result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, final

from torch import Tensor, nn

from ..errors import one_of, positive, whole
from ..kernels import NoiseKeys, Stream, philox_normal
from ..nets import Denoiser
from .base import COMBINE, DenoisedBase


@final
class DiffSmoothClassifier(DenoisedBase):
    """The classifier's mean over ``copies`` noisy copies of the denoised image: local smoothing.

    The copies are not clamped; a classifier that was trained under noise of ``local_sigma`` fits best. Which mean
    is taken and all numbers are ours.

    Args:
        denoiser, classifier, sigma: as for ``DenoisedBase``.
        copies: noisy copies of each denoised image.
        local_sigma: deviation of their noise in [0, 1] units.
        combine: "softmax" adds probabilities, "majority" votes (a tie goes to the lower class), "logits" adds logits.
    """

    options: ClassVar[tuple[str, ...]] = ("copies", "local_sigma", "combine")

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        sigma: float,
        copies: int = 5,
        local_sigma: float = 0.1,
        combine: str = "softmax",
    ) -> None:
        super().__init__(denoiser, classifier, sigma)
        self.n_versions, self.local_sigma = whole("copies", copies, 1), positive("local_sigma", local_sigma)
        self.combine = one_of("combine", combine, COMBINE)

    def versions(self, noisy: Tensor, keys: NoiseKeys) -> Iterator[Tensor]:
        """Noisy copies of the one estimate."""
        clean = self.clean(noisy)
        for copy in range(self.n_versions):
            own = self.version_keys(keys, copy)
            yield clean + self.local_sigma * philox_normal(own, 0, Stream.REVERSE, tuple(clean.shape[1:]))

    def settings(self) -> dict[str, Any]:
        """Its name and what it was made with."""
        return {
            "method": "diffsmooth",
            "copies": self.n_versions,
            "local_sigma": self.local_sigma,
            "combine": self.combine,
        }
