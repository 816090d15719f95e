"""Input normalisation that belongs to a classifier, so that everything outside speaks [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from ..errors import mistake, one_of
from .config import CIFAR10_MEAN, CIFAR10_STD, check_normalisation

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]

#: Name -> (mean, std) per channel of images in [0, 1]; None feeds the image as it is.
NORMALISATIONS: dict[str, MeanStd | None] = {
    "none": None,
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def mean_and_std(normalise: str | Sequence[Sequence[float]]) -> MeanStd | None:
    """(mean, std) for a name of `NORMALISATIONS` or for a pair of them; None for ``"none"``.

    Raises:
        TypeError, ValueError: neither a known name nor a pair of equally many numbers, std above zero.
    """
    if isinstance(normalise, str):
        return NORMALISATIONS[one_of("normalise", normalise, NORMALISATIONS)]
    try:
        mean, std = (tuple(float(value) for value in part) for part in normalise)
    except (TypeError, ValueError) as error:
        expected = f"a name ({', '.join(NORMALISATIONS)}) or a pair (mean, std)"
        raise TypeError(mistake("normalise", expected, repr(normalise))) from error
    check_normalisation(mean, std, len(mean))
    return mean, std


@final
class Normalised(nn.Module):
    """``module((x - mean) / std)``; mean and std are constants per channel, not in the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            column = torch.tensor(tuple(values), device="cpu").view(1, -1, 1, 1)
            self.register_buffer(name, column, persistent=False)
        self.module = module
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.module((x - self.mean) / self.std)
