"""Input normalisation that belongs to a classifier, so that everything outside speaks [0, 1]."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ..errors import mistake, one_of
from ..shown import Card, ShownModule, described
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


class OwnNormalisation(nn.Module, ABC):
    """Base of networks that normalise their input themselves, where a mean and a deviation are given.

    ``forward``: images float32 ``[B, C, H, W]`` in [0, 1] -> logits ``[B, classes]``.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            column = None if values is None else torch.tensor(values, device="cpu").view(1, -1, 1, 1)
            self.register_buffer(name, column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        return self.logits(x)

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""


@final
class Normalised(ShownModule, nn.Module):
    """``module((x - mean) / std)``; mean and std are constants per channel, not in the state dict.

    Args:
        module: a network for normalised images.
        mean, std: of images in [0, 1]: a number per channel, or one number for all.

    Warns:
        UserWarning: the module seems to normalise already.

    Raises:
        TypeError, ValueError: no module, other than numbers, as many means as deviations, a deviation not above 0, or
            numbers for images in 0..255; images of another number of channels, when called.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Any, std: Any) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(mistake("module", "a torch.nn.Module", type(module).__name__))
        for name, values in zip(("mean", "std"), per_channel(mean, std), strict=True):
            column = torch.tensor(values, device="cpu").view(1, -1, 1, 1)
            self.register_buffer(name, column, persistent=False)
        self.module = module
        self.train(module.training)
        warn_if_twice(self, "module")

    def forward(self, x: Tensor) -> Tensor:
        channels = self.mean.shape[1]
        if channels not in (1, x.shape[1]):  # one channel would be broadcast to several
            raise ValueError(
                mistake("x", f"images of {channels} channels, as mean and std are", list(x.shape))
            )
        return self.module((x - self.mean) / self.std)

    def _shown(self) -> Card:
        rows = [
            (name, " ".join(f"{v:.4g}" for v in getattr(self, name).flatten())) for name in ("mean", "std")
        ]
        return Card(f"Normalised: {described(self.module)}", tuple(rows))


def per_channel(mean: Any, std: Any) -> MeanStd:
    """(mean, std) as equally many numbers each; what `Normalised` takes.

    Raises:
        TypeError, ValueError: they are not, or a deviation is not above 0.
    """
    means, deviations = _checked("mean", mean), _checked("std", std)
    if len(means) != len(deviations):
        expected = "one number per channel each"
        raise ValueError(mistake("mean and std", expected, f"{len(means)} and {len(deviations)}"))
    check_normalisation(means, deviations, len(means))
    return means, deviations


def _checked(name: str, values: Any) -> tuple[float, ...]:
    try:
        found = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(mistake(name, "a number per channel", repr(values))) from error
    if not found or not all(abs(value) < float("inf") for value in found):
        raise ValueError(mistake(name, "a finite number per channel", repr(values)))
    return tuple(found)


#: Names under which modules that normalise their input keep mean and deviation.
_PAIRS = (("mean", "std"), ("_mean", "_std"), ("mu", "sigma"), ("means", "sds"), ("mean", "stdv"))
_CALLED = re.compile(r"normali[sz]|standardi[sz]|preproc", re.IGNORECASE)


def normalisations_in(module: nn.Module, name: str = "") -> list[str]:
    """The parts of a network that one after the other normalise its input by constants, in words; [] if none is seen.

    Seen are our own networks and `Normalised`, and every module with mean and deviation of at most four channels which
    is called like one (``transforms.Normalize``, ``NormalizeLayer``, ``Preprocess``), or keeps them beside a network.
    Of networks beside each other, as in an ensemble, those of one are listed.
    """
    own: list[str] = []
    behind: list[list[str]] = []
    beside: list[list[str]] = []
    children = list(module.named_children())
    if _has_constants(module) and (children or _CALLED.search(type(module).__name__)):
        own = [f"{name or 'itself'} ({type(module).__name__})"]
    for called, child in children:
        found = normalisations_in(child, f"{name}.{called}" if name else called)
        if not found:
            continue
        layer = not any(True for _ in child.children()) and not isinstance(module, nn.ModuleList)
        (behind if layer or isinstance(module, nn.Sequential) else beside).append(found)
    return own + [one for found in behind for one in found] + max(beside, key=len, default=[])


def _has_constants(module: nn.Module) -> bool:
    """Whether it keeps a mean and a deviation per channel that change something."""
    for pair in _PAIRS:
        mean, std = (getattr(module, one, None) for one in pair)
        if _is_column(mean) and _is_column(std):
            return _numbers(mean) != {0.0} or _numbers(std) != {1.0}
    return False


def warn_if_twice(module: nn.Module, argument: str) -> None:
    """Warn (UserWarning) if images seem to be normalised twice on their way through ``module``."""
    found = normalisations_in(module)
    if len(found) > 1:
        warnings.warn(
            f"`{argument}` seems to normalise images {len(found)} times: in {', '.join(found)}. Images in [0, 1] are "
            "to be normalised once, inside the classifier: leave out all but one",
            stacklevel=3,
        )


def _numbers(values: Any) -> set[float]:
    return set(torch.as_tensor(values).double().flatten().tolist())


def _is_column(value: Any) -> bool:
    """Whether these may be constants per channel: one to four numbers."""
    if isinstance(value, Tensor):
        return value.is_floating_point() and not isinstance(value, nn.Parameter) and 1 <= value.numel() <= 4
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    return isinstance(value, list | tuple) and 1 <= len(value) <= 4 and all(_is_column(v) for v in value)
