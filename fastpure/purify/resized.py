"""A purifier for images of another size than its diffusion model's, resized on the way in and out."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from ..classifiers.resized import resize
from ..errors import mistake, whole
from ..methods import Method
from ..nets import Denoiser
from .purifier import Purifier


@final
class ResizedPurifier(Purifier):
    """``Purifier`` for ``[B, C, size, size]`` images in front of a model of another size.

    DiffPure's ImageNet setting: images of 224 are resized to 256, purified, and resized back before the
    classifier sees them; attacks act on the 224 image and gradients go through both resizings (bilinear, without
    antialiasing). The noise is that of the model's size, so its keys are those of a 256 purifier.

    Args:
        size: height and width of the images that come in and go out.
        others: as for ``Purifier``.
    """

    def __init__(self, denoiser: Denoiser, method: Method, size: int, *args: Any, **options: Any) -> None:
        super().__init__(denoiser, method, *args, **options)
        self.size = whole("size", size, 1)
        _, height, width = self.denoiser.image_shape
        if height != width:
            raise ValueError(mistake("denoiser", "one of square images", f"{height}x{width}"))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, size, size): the images that come in and go out."""
        return self.denoiser.image_shape[0], self.size, self.size

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Purify ``x`` [B, C, size, size] float32 in [0, 1]; arguments, result and errors as for ``Purifier``."""
        return resize(super().forward(self._enlarged(x), *args, **options), self.size)

    def trajectory(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Every state on the way, [K + 1, B, C, size, size] in [0, 1] units, unclamped."""
        states = super().trajectory(self._enlarged(x), *args, **options)
        smaller = resize(states.flatten(0, 1), self.size)
        return smaller.unflatten(0, states.shape[:2])

    def watch(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """See ``Purifier.watch``: states and result are [B, C, H, W] of the model's size."""
        return super().watch(self._enlarged(x), *args, **options)

    def own_noise(self, x: Tensor, sample_ids: Tensor) -> str:
        """See ``Purifier.own_noise``."""
        return super().own_noise(self._enlarged(x), sample_ids)

    def answers(self, x: Tensor, sample_ids: Tensor) -> Tensor | None:
        """See ``Purifier.answers``."""
        return super().answers(self._enlarged(x), sample_ids)

    def with_method(self, method: Method) -> ResizedPurifier:
        """The same networks, size, seed and precisions with another method."""
        denoiser, *options = self._remade()
        return ResizedPurifier(denoiser, method, self.size, *options)

    def extra_repr(self) -> str:
        """Size, method, seed, precision and memory plan, for printing."""
        return f"size={self.size}, {super().extra_repr()}"

    def _enlarged(self, x: Tensor) -> Tensor:
        channels = self.denoiser.image_shape[0]
        if not isinstance(x, Tensor):
            raise TypeError(
                mistake("x", f"a float32 tensor [B, {channels}, {self.size}, {self.size}]", type(x).__name__)
            )
        if x.dim() != 4 or tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                mistake("x", f"of shape [B, {channels}, {self.size}, {self.size}]", list(x.shape))
            )
        if not x.is_floating_point():
            return x  # the purifier says what is wrong with it
        return resize(x, self.denoiser.image_shape[1])
