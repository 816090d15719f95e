"""A pre-activation ResNet (He et al. 2016, arXiv 1603.05027) for small images."""

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
class ResNetConfig(ClassifierConfig):
    """Shape of a `ResNet`.

    Fields:
        image_shape: ``(C, H, W)`` of the input.
        classes: number of logits.
        widths: channels of each stage; every stage after the first halves the resolution.
        blocks: residual blocks per stage.
        mean, std: the input is normalised as ``(x - mean) / std``, per channel, inside the network.

    Raises:
        TypeError, ValueError: a field out of range; the message names it.
    """

    image_shape: tuple[int, int, int]
    classes: int
    widths: tuple[int, ...]
    blocks: int = 1
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        for name in ("image_shape", "widths", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_images(self.image_shape, self.classes)
        whole("blocks", self.blocks, 1, MOST_BLOCKS)
        if not self.widths:
            raise ValueError(mistake("widths", "at least one number of channels", "none"))
        for width in self.widths:
            whole("widths", width, 1, WIDEST)
        check_normalisation(self.mean, self.std, self.image_shape[0])
        if min(self.image_shape[1:]) < 2 ** (len(self.widths) - 1):
            raise ValueError(
                mistake("image_shape", f"large enough for {len(self.widths)} stages", self.image_shape)
            )


class _Block(nn.Module):
    """BN-ReLU-conv twice, plus the input (through a strided 1x1 convolution where the shape changes)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        changes = before != after or stride != 1
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        carried = x if self.shortcut is None else self.shortcut(activated)
        return carried + self.conv2(F.relu(self.norm2(self.conv1(activated))))


@final
class ResNet(nn.Module):
    """The network. ReLU, batch normalisation and average pooling only, so that in evaluation mode the logits
    are piece-wise linear in the image, and the Hessian of the log-confidence has its closed form.

    ``forward``: images float32 ``[B, C, H, W]`` in [0, 1] -> logits ``[B, classes]``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer(
            "mean", torch.tensor(config.mean, device="cpu").view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(config.std, device="cpu").view(1, -1, 1, 1), persistent=False
        )
        self.stem = nn.Conv2d(config.image_shape[0], config.widths[0], 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        before = config.widths[0]
        for stage, width in enumerate(config.widths):
            for index in range(config.blocks):
                blocks.append(_Block(before, width, stride=2 if stage > 0 and index == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(before)
        self.head = nn.Linear(before, config.classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Pooled features [B, F] before the last layer, of images [B, C, H, W] in [0, 1]."""
        x = self.blocks(self.stem((x - self.mean) / self.std))
        return F.relu(self.norm(x)).mean(dim=(2, 3))

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F] and the logits [B, classes] made of them, in one pass."""
        features = self.features(x)
        return features, self.head(features)


CONFIGS: dict[str, ResNetConfig] = {
    "resnet-digits": ResNetConfig(image_shape=(1, 8, 8), classes=10, widths=(16, 32)),
    "resnet-cifar10": ResNetConfig(
        image_shape=(3, 32, 32),
        classes=10,
        widths=(32, 64, 128),
        blocks=2,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "resnet-cifar10-small": ResNetConfig(
        image_shape=(3, 32, 32),
        classes=10,
        widths=(16, 48, 128),
        blocks=2,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
}
