"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146), the classifiers of the literature.

Parameter names are those of the TRADES code, which RobustBench and DiffPure share, so that their files fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import mistake, one_of
from .config import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    ClassifierConfig,
    as_tuples,
    check_own_normalisation,
    check_wide,
)
from .normalised import OwnNormalisation

_ACTIVATIONS = {"relu": F.relu, "silu": F.silu}


@final
@dataclass(frozen=True)
class WideResNetConfig(ClassifierConfig):
    """Shape of a `WideResNet`.

    Fields:
        depth: convolutions on the longest path, 6 n + 4 for n blocks in each of the three stages.
        widen: the stages have 16, 32 and 64 times this many channels.
        classes: number of logits.
        image_shape: ``(C, H, W)`` of the input; H and W divisible by 4.
        dropout: probability between the convolutions of a block; without effect in evaluation mode.
        activation: ``"relu"`` or ``"silu"`` (also called Swish).
        same_padding: the strided 3x3 convolutions are padded at the right and at the bottom only, as "SAME"
            means elsewhere; DeepMind's networks are.
        mean, std: if given, the input is normalised as ``(x - mean) / std`` inside the network; None feeds
            the [0, 1] image to the first convolution, as RobustBench's 'Standard' does.

    Raises:
        TypeError, ValueError: a field out of range; the message names it.
    """

    depth: int = 28
    widen: int = 10
    classes: int = 10
    image_shape: tuple[int, int, int] = (3, 32, 32)
    dropout: float = 0.0
    activation: str = "relu"
    same_padding: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        as_tuples(self, "image_shape", "mean", "std")
        check_wide(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(mistake("dropout", "in [0, 1)", self.dropout))
        one_of("activation", self.activation, _ACTIVATIONS)
        check_own_normalisation(self)

    @property
    def blocks(self) -> int:
        """Blocks per stage."""
        return (self.depth - 4) // 6


class _Block(nn.Module):
    """BN-act-conv twice, plus the input; where the width changes, the shortcut takes the activated input."""

    def __init__(self, before: int, after: int, stride: int, config: WideResNetConfig) -> None:
        super().__init__()
        self.activation, self.dropout = _ACTIVATIONS[config.activation], config.dropout
        self.bn1 = nn.BatchNorm2d(before)
        self.one_sided = config.same_padding and stride == 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, 0 if self.one_sided else 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        # A changed resolution always comes with a changed width in this family.
        self.convShortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(self.bn1(x))
        carried = x if self.convShortcut is None else self.convShortcut(activated)
        padded = F.pad(activated, (0, 1, 0, 1)) if self.one_sided else activated
        hidden = self.activation(self.bn2(self.conv1(padded)))
        return carried + self.conv2(F.dropout(hidden, self.dropout, self.training))


class _Stage(nn.Module):
    def __init__(self, before: int, after: int, stride: int, config: WideResNetConfig) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            _Block(before, after, stride, config),
            *(_Block(after, after, 1, config) for _ in range(config.blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@final
class WideResNet(OwnNormalisation):
    """The network. With ReLU its logits are piece-wise linear in the image in evaluation mode.

    Called as `OwnNormalisation` says.
    """

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__(config.mean, config.std)
        self.config = config
        widths = (16, *(16 * 2**stage * config.widen for stage in range(3)))
        self.activation = _ACTIVATIONS[config.activation]
        self.conv1 = nn.Conv2d(config.image_shape[0], 16, 3, 1, 1, bias=False)
        self.block1 = _Stage(widths[0], widths[1], 1, config)
        self.block2 = _Stage(widths[1], widths[2], 2, config)
        self.block3 = _Stage(widths[2], widths[3], 2, config)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], config.classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def logits(self, x: Tensor) -> Tensor:
        """See `OwnNormalisation`."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.activation(self.bn1(x)).mean(dim=(2, 3)))


#: Name -> configuration. "dropout" is DiffPure's, "dm" DeepMind's (RobustBench's DMWideResNet and DiffPure's
#: other 70-16, both with Swish), the others RobustBench's without normalisation.
WIDE_RESNETS: dict[str, WideResNetConfig] = {
    "wrn-28-10": WideResNetConfig(),
    "wrn-34-10": WideResNetConfig(depth=34),
    "wrn-70-16": WideResNetConfig(depth=70, widen=16),
    "wrn-70-16-dropout": WideResNetConfig(
        depth=70, widen=16, dropout=0.3, mean=CIFAR10_MEAN, std=CIFAR10_STD
    ),
    "dm-wrn-28-10": WideResNetConfig(
        activation="silu", same_padding=True, mean=CIFAR10_MEAN, std=CIFAR10_STD
    ),
    "dm-wrn-70-16": WideResNetConfig(
        depth=70, widen=16, activation="silu", same_padding=True, mean=CIFAR10_MEAN, std=CIFAR10_STD
    ),
}
