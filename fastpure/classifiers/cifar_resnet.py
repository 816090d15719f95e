"""Residual networks with a 3x3 stem (He et al. 2016, arXiv 1512.03385 and 1603.05027) for 32x32 images.

Parameter names are those of the widespread CIFAR code that RobustBench and DiffPure use (``layer1.0.conv1``,
``shortcut.0``, ``linear``), so that their files fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import mistake, one_of, whole
from .config import MOST_BLOCKS, WIDEST, ClassifierConfig, as_tuples, check_images, check_own_normalisation
from .normalised import OwnNormalisation

_SHORTCUTS = ("input", "activated")


@final
@dataclass(frozen=True)
class CifarResNetConfig(ClassifierConfig):
    """Shape of a `CifarResNet`.

    Fields:
        block: ``"basic"`` (two 3x3 convolutions), ``"bottleneck"`` (1x1, 3x3, 1x1 with four times the width)
            or ``"preact"`` (basic, normalised and activated before each convolution).
        blocks: how many in each of the four stages, which have ``width`` times 1, 2, 4 and 8 channels.
        width: channels of the stem.
        classes: number of logits.
        image_shape: ``(C, H, W)`` of the input; H and W divisible by 8.
        shortcut: what a pre-activation block's projection sees: its ``"input"`` or the ``"activated"`` input.
        final_norm: whether a pre-activation network ends in BatchNorm and ReLU.
        mean, std: if given, the input is normalised as ``(x - mean) / std`` inside the network.

    Raises:
        TypeError, ValueError: a field out of range; the message names it.
    """

    block: str = "basic"
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    classes: int = 10
    image_shape: tuple[int, int, int] = (3, 32, 32)
    shortcut: str = "input"
    final_norm: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        as_tuples(self, "blocks", "image_shape", "mean", "std")
        one_of("block", self.block, _BLOCKS)
        one_of("shortcut", self.shortcut, _SHORTCUTS)
        check_images(self.image_shape, self.classes)
        if len(self.blocks) != 4:
            raise ValueError(mistake("blocks", "four numbers", self.blocks))
        for count in self.blocks:
            whole("blocks", count, 1, MOST_BLOCKS)
        whole("width", self.width, 1, WIDEST)
        if any(size % 8 for size in self.image_shape[1:]):
            raise ValueError(mistake("image_shape", "of height and width divisible by 8", self.image_shape))
        if self.block != "preact" and (self.final_norm or self.shortcut != "input"):
            found = f"{self.shortcut!r} and {self.final_norm}"
            raise ValueError(mistake("shortcut and final_norm", "left alone but for preact blocks", found))
        check_own_normalisation(self)


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, before: int, width: int, stride: int, config: CifarResNetConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _projection(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, before: int, width: int, stride: int, config: CifarResNetConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _projection(before, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(x))


class _PreActivation(nn.Module):
    expansion = 1

    def __init__(self, before: int, width: int, stride: int, config: CifarResNetConfig) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.projects_activated = config.shortcut == "activated"
        changes = stride != 1 or before != width
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False)) if changes else nn.Sequential()
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        projects = len(self.shortcut) > 0 and self.projects_activated
        carried = self.shortcut(activated if projects else x)
        return carried + self.conv2(F.relu(self.bn2(self.conv1(activated))))


def _projection(before: int, after: int, stride: int) -> nn.Sequential:
    if stride == 1 and before == after:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


_BLOCKS: dict[str, type[_Basic] | type[_Bottleneck] | type[_PreActivation]] = {
    "basic": _Basic,
    "bottleneck": _Bottleneck,
    "preact": _PreActivation,
}


def _stages(config: CifarResNetConfig) -> list[nn.Sequential]:
    """The four stages; the later three halve the resolution and double the width."""
    kind, before, stages = _BLOCKS[config.block], config.width, []
    for stage, count in enumerate(config.blocks):
        layers = []
        for index in range(count):
            width, stride = config.width * 2**stage, 2 if stage > 0 and index == 0 else 1
            layers.append(kind(before, width, stride, config))
            before = width * kind.expansion
        stages.append(nn.Sequential(*layers))
    return stages


@final
class CifarResNet(OwnNormalisation):
    """The network; ReLU only, so its logits are piece-wise linear in the image in evaluation mode.

    Called as `OwnNormalisation` says.
    """

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config.mean, config.std)
        self.config = config
        self.conv1 = nn.Conv2d(config.image_shape[0], config.width, 3, 1, 1, bias=False)
        if config.block != "preact":
            self.bn1 = nn.BatchNorm2d(config.width)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(config)
        widest = 8 * config.width * _BLOCKS[config.block].expansion
        if config.final_norm:
            self.bn = nn.BatchNorm2d(widest)
        self.linear = nn.Linear(widest, config.classes)

    def logits(self, x: Tensor) -> Tensor:
        """See `OwnNormalisation`."""
        x = self.conv1(x)
        if self.config.block != "preact":
            x = F.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.config.final_norm:
            x = F.relu(self.bn(x))
        return self.linear(x.mean(dim=(2, 3)))


#: Name -> configuration, without normalisation.
CIFAR_RESNETS: dict[str, CifarResNetConfig] = {
    "resnet-18": CifarResNetConfig(),
    "resnet-34": CifarResNetConfig(blocks=(3, 4, 6, 3)),
    "resnet-50": CifarResNetConfig(block="bottleneck", blocks=(3, 4, 6, 3)),
    "preact-resnet-18": CifarResNetConfig(block="preact"),
    "preact-resnet-18-activated": CifarResNetConfig(block="preact", shortcut="activated"),
}
