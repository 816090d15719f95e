"""Wide residual networks whose convolutions have biases: those that Hill et al. 2021 (ebm-defense) and ADP published.

Of the same paper as `WideResNet` (Zagoruyko and Komodakis 2016, arXiv 1605.07146) and of the same depths and widths,
but another function: a block's second convolution strides, not its first, and its shortcut sees the block's own input,
neither normalised nor activated. Parameter names are those of the widespread code that these projects took over
(``layer1.0.conv1``, ``layer1.0.shortcut.0``, ``linear``), so that their files fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from .config import ClassifierConfig, as_tuples, check_own_normalisation, check_wide
from .normalised import OwnNormalisation


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
        as_tuples(self, "image_shape", "mean", "std")
        check_wide(self)
        check_own_normalisation(self)


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
class BiasedWideResNet(OwnNormalisation):
    """The network; ReLU only, so its logits are piece-wise linear in the image in evaluation mode.

    Called as `OwnNormalisation` says.
    """

    def __init__(self, config: BiasedWideResNetConfig) -> None:
        super().__init__(config.mean, config.std)
        self.config = config
        blocks = (config.depth - 4) // 6
        widths = (16, *(16 * 2**stage * config.widen for stage in range(3)))
        self.conv1 = nn.Conv2d(config.image_shape[0], 16, 3, padding=1)
        self.layer1 = _stage(widths[0], widths[1], 1, blocks)
        self.layer2 = _stage(widths[1], widths[2], 2, blocks)
        self.layer3 = _stage(widths[2], widths[3], 2, blocks)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], config.classes)

    def logits(self, x: Tensor) -> Tensor:
        """See `OwnNormalisation`."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.relu(self.bn1(x)).mean(dim=(2, 3)))


#: Name -> configuration, without normalisation.
BIASED_WIDE_RESNETS: dict[str, BiasedWideResNetConfig] = {"wrn-28-10-biased": BiasedWideResNetConfig()}
