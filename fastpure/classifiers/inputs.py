"""What a classifier wants to see: the usual ranges and normalisations, tried on labelled images.

A network that wants 0..255 and gets [0, 1] answers at chance, without a word. Which input it was trained with stands
in no state dict; a few hundred labelled images tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from ..errors import mistake
from ..intervals import wilson
from .normalised import NORMALISATIONS, MeanStd

_CAFFE = ((123.675 / 255, 116.28 / 255, 103.53 / 255), (1 / 255,) * 3)
_GREY = {"mnist": ((0.1307,), (0.3081,))}
_BATCH = 64


@final
@dataclass(frozen=True)
class Presentation:
    """One way of showing an image in [0, 1] to a network: (x - mean) / std, then perhaps the channels the other way."""

    name: str
    normalise: str | MeanStd
    bgr: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] as the network gets them."""
        pair = NORMALISATIONS[self.normalise] if isinstance(self.normalise, str) else self.normalise
        if pair is not None:
            mean, std = (
                torch.tensor(part, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for part in pair
            )
            x = (x - mean) / std
        return x.flip(1) if self.bgr else x

    @property
    def argument(self) -> str:
        """What to write, so that `load_classifier` does this."""
        if isinstance(self.normalise, str):
            words = f"normalise={self.normalise!r}"
        else:
            mean, std = (tuple(round(value, 6) for value in part) for part in self.normalise)
            words = f"normalise=({mean}, {std})"
        return f"{words}, in a module that flips the channels: network(x.flip(1))" if self.bgr else words


@final
@dataclass(frozen=True)
class Tried:
    """How many of ``total`` images a network gets right when they are shown like this; ``low`` is Wilson's 95 %."""

    presentation: Presentation
    right: int
    total: int
    low: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.total


def presentations(channels: int) -> list[Presentation]:
    """The usual ways of showing an image with so many channels."""
    halves, bytes_ = ((0.5,) * channels, (0.5,) * channels), ((0.0,) * channels, (1 / 255,) * channels)
    found = [
        Presentation("[0, 1]", "none"),
        Presentation("[0, 255]", bytes_),
        Presentation("[-1, 1]", halves),
    ]
    if channels != 3:
        return found + [Presentation(name, pair) for name, pair in _GREY.items() if channels == 1]
    found += [Presentation(name, name) for name in NORMALISATIONS if name != "none"]
    found.append(Presentation("[0, 255] less ImageNet's mean", _CAFFE))
    return found + [Presentation(f"{one.name}, BGR", one.normalise, True) for one in found]


def try_inputs(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> list[Tried]:
    """Every usual presentation of ``images`` [N, C, H, W] in [0, 1] and what the network makes of it, the best first.

    Raises:
        ValueError: the network cannot take such images, or has fewer classes than the labels.
    """
    if len(images) == 0:
        raise ValueError(mistake("images", "at least one", "none"))
    if isinstance(network, nn.Module) and network.training:
        raise ValueError(mistake("network", "in evaluation mode", "training mode"))
    found = []
    for one in presentations(images.shape[1]):
        right = 0
        for start in range(0, len(images), _BATCH):
            part = slice(start, start + _BATCH)
            right += _right(network, one(images[part]), labels[part])
        found.append(Tried(one, right, len(images), wilson(right, len(images)).low))
    return sorted(found, key=lambda tried: -tried.right)


def _right(network: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> int:
    try:
        with torch.no_grad():
            logits = network(x)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            mistake("data", "of images that the network takes", f"{list(x.shape)}: {reason}")
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(mistake("classifier", "a network that returns logits [B, classes]", shape))
    if int(labels.max()) >= logits.shape[1]:
        expected = f"a network of at least {int(labels.max()) + 1} classes, as the data has"
        raise ValueError(mistake("classifier", expected, logits.shape[1]))
    answered = logits.isfinite().all(1)  # an answer that is no number is no answer
    return int((answered & (logits.argmax(1) == labels)).sum())


def best(tried: list[Tried], classes: int) -> tuple[str, Tried | None]:
    """(what the table says in a sentence, the one that fits; None if none does)."""
    first = tried[0]
    if first.low <= 1.0 / classes:
        return (
            f"none fits: {100 * first.accuracy:.1f} % is no better than chance among {classes} classes. Other causes: "
            "labels in another order, images of another size or data set, weights of another network",
            None,
        )
    equal = [one.presentation.name for one in tried[1:] if one.accuracy >= first.low]
    sentence = (
        f"fits: {first.presentation.name} ({100 * first.accuracy:.1f} %): {first.presentation.argument}"
    )
    if equal:
        sentence += f". These images do not tell it from {', '.join(equal[:4])}: the training code does, or more images"
    return sentence, first
