"""Wide residual networks whose convolutions have biases: those that Hill et al. 2021 (ebm-defense) and ADP published.

Of the same paper as `WideResNet` (Zagoruyko and Komodakis 2016, arXiv 1605.07146) and of the same depths and widths,
but another function: a block's second convolution strides, not its first, and its shortcut sees the block's own input,
neither normalised nor activated. Parameter names are those of the widespread code that these projects took over
(``layer1.0.conv1``, ``layer1.0.shortcut.0``, ``linear``), so that their files fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import mistake, whole
from .config import MOST_BLOCKS, WIDEST, ClassifierConfig, check_images, check_normalisation


@final
@dataclass(frozen=True)
class BiasedWideResNetConfig(ClassifierConfig):
    """Shape of a `BiasedWideResNet`.

    Fields:
        depth: convolutions on the longest path, 6 n + 4 for n blocks in each of the three stages.
        widen: the stages have 16, 32 and 64 times this many channels.
        classes: number of logits.
        image_shape: ``(C, H, W)`` of the input; H and W divisible by 4.
        mean, std: if given, the input is normalised as ``(x - mean) / std`` inside the network.

    Raises:
        TypeError, ValueError: a field out of range; the message names it.
    """

    depth: int = 28
    widen: int = 10
    classes: int = 10
    image_shape: tuple[int, int, int] = (3, 32, 32)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("image_shape", "mean", "std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_images(self.image_shape, self.classes)
        whole("depth", self.depth, 10, 6 * MOST_BLOCKS + 4)
        whole("widen", self.widen, 1, WIDEST // 64)
        if (self.depth - 4) % 6:
            raise ValueError(mistake("depth", "6 n + 4", self.depth))
        if any(size % 4 for size in self.image_shape[1:]):
            raise ValueError(mistake("image_shape", "of height and width divisible by 4", self.image_shape))
        if (self.mean is None) != (self.std is None):
            raise ValueError(mistake("mean and std", "given both or neither", (self.mean, self.std)))
        if self.mean is not None and self.std is not None:
            check_normalisation(self.mean, self.std, self.image_shape[0])


class _Block(nn.Module):
    """BN-ReLU-conv twice, plus the input; where the shape changes, the second convolution and the shortcut do it."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, padding=1)
        changes = stride != 1 or before != after
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride)) if changes else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(hidden))) + self.shortcut(x)


def _stage(before: int, after: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(before, after, stride), *(_Block(after, after, 1) for _ in range(blocks - 1)))


@final
class BiasedWideResNet(nn.Module):
    """The network; ReLU only, so its logits are piece-wise linear in the image in evaluation mode.

    ``forward``: images float32 ``[B, C, H, W]`` in [0, 1] -> logits ``[B, classes]``.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, config: BiasedWideResNetConfig) -> None:
        super().__init__()
        self.config = config
        for name, values in (("mean", config.mean), ("std", config.std)):
            column = None if values is None else torch.tensor(values, device="cpu").view(1, -1, 1, 1)
            self.register_buffer(name, column, persistent=False)
        blocks = (config.depth - 4) // 6
        widths = (16, *(16 * 2**stage * config.widen for stage in range(3)))
        self.conv1 = nn.Conv2d(config.image_shape[0], 16, 3, padding=1)
        self.layer1 = _stage(widths[0], widths[1], 1, blocks)
        self.layer2 = _stage(widths[1], widths[2], 2, blocks)
        self.layer3 = _stage(widths[2], widths[3], 2, blocks)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], config.classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.relu(self.bn1(x)).mean(dim=(2, 3)))


#: Name -> configuration, without normalisation.
BIASED_WIDE_RESNETS: dict[str, BiasedWideResNetConfig] = {"wrn-28-10-biased": BiasedWideResNetConfig()}
