"""What every classifier's configuration shares: plain values out and in, and checks of the common fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from ..errors import listed, mistake, positive, whole

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)

Config = TypeVar("Config", bound="ClassifierConfig")


class ClassifierConfig:
    """Base of the frozen dataclasses that describe a classifier; it has no fields of its own."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that json can hold."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Inverse of `to_dict`. Raises ValueError for fields that are unknown or missing."""
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise ValueError(mistake("config", f"made of {sorted(known)}", f"unknown {unknown}"))
        # Every file has all of them: a missing one is damage, and its default would be another network.
        if missing := sorted(known - set(values)):
            raise ValueError(mistake("config", f"a whole {cls.__name__}", f"one without {listed(missing)}"))
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"`config` is not a {cls.__name__}: {error}") from error


MOST_BLOCKS, WIDEST = 1000, 65536
"""Sizes beyond which a configuration is a mistake or an attack on memory and time, not a network."""


def check_images(image_shape: tuple[int, ...], classes: int) -> None:
    """Raise TypeError or ValueError unless these are ``(C, H, W)`` and a number of logits."""
    if len(image_shape) != 3:
        raise ValueError(mistake("image_shape", "(C, H, W)", image_shape))
    for size in image_shape:
        whole("image_shape", size, 1, 8192)
    whole("classes", classes, 2, 1_000_000)


def as_tuples(config: Any, *names: str) -> None:
    """Lists in these fields of a frozen ``config``, as json gives them, become tuples."""
    for name in names:
        if getattr(config, name) is not None:
            object.__setattr__(config, name, tuple(getattr(config, name)))


def check_own_normalisation(config: Any) -> None:
    """Raise ValueError unless ``mean`` and ``std`` of a ``config`` are both None or fit its ``image_shape``."""
    if (config.mean is None) != (config.std is None):
        raise ValueError(mistake("mean and std", "given both or neither", (config.mean, config.std)))
    if config.mean is not None:
        check_normalisation(config.mean, config.std, config.image_shape[0])


def check_wide(config: Any) -> None:
    """Raise TypeError or ValueError unless depth, width and image of a wide residual network fit together."""
    check_images(config.image_shape, config.classes)
    whole("depth", config.depth, 10, 6 * MOST_BLOCKS + 4)
    whole("widen", config.widen, 1, WIDEST // 64)
    if (config.depth - 4) % 6:
        raise ValueError(mistake("depth", "6 n + 4", config.depth))
    if any(size % 4 for size in config.image_shape[1:]):
        raise ValueError(mistake("image_shape", "of height and width divisible by 4", config.image_shape))


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Raise ValueError unless each channel has a mean in [-1, 1] and a positive standard deviation."""
    if len(mean) != channels or len(std) != channels:
        raise ValueError(mistake("mean and std", f"{channels} numbers each", (mean, std)))
    for value in std:
        positive("std", value)
    if not all(abs(value) <= 1 for value in mean):
        remedy = "Means and deviations of images in 0..255 are to be divided by 255"
        raise ValueError(mistake("mean", "that of images in [0, 1]", mean, remedy))
