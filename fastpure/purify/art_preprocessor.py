"""The class behind `peers.as_art_preprocessor`: a file of its own, because its base class is ART's."""

from __future__ import annotations

from itertools import chain
from typing import Any, final

import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from torch import Tensor

from .numbered import same_noise
from .purifier import Purifier


@final
class PurifierPreprocessor(PreprocessorPyTorch):
    """See `peers.as_art_preprocessor`."""

    params = ["purifier", "draw"]  # noqa: RUF012 (ART's name for what set_params may change)

    def __init__(self, purifier: Purifier, draw: int | None) -> None:
        tensors = chain(purifier.parameters(), purifier.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        super().__init__(
            device_type="cpu" if device.type == "cpu" else "gpu",
            is_fitted=True,
            apply_fit=False,
            apply_predict=True,
        )
        self._device = device
        self.purifier, self.draw, self._next_draw = purifier, draw, 0

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Purified images, differentiable, and ``y`` as it came."""
        if self.draw is not None:
            return self.purifier(x, *same_noise(x, self.draw)), y
        self._next_draw += 1
        return self.purifier(x, draw=self._next_draw - 1), y
