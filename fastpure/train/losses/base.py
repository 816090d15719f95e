"""What losses share: their contract, augmentation, and networks as constants for inner loops."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...classifiers import call_frozen
from ...errors import whole
from ...nets import Denoiser
from ..batches import Batch, Purpose, StepRandom

Network = Callable[[Tensor, Tensor], Tensor]
"""(state [B, C, H, W], labels [B]) -> the network's answer, float32."""


@contextmanager
def inner_network(model: nn.Module, dropout: bool) -> Iterator[Network]:
    """``model`` with its weights as constants, for gradients with respect to its input only.

    Under autocast a `Denoiser` becomes a half-precision copy instead: the functions that save memory for
    frozen weights work in the dtype of those weights. ``dropout`` says whether dropout acts.
    """
    kind = next(model.parameters()).device.type
    half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if half is not None and isinstance(model, Denoiser):
        copy = model.cast(half).train(dropout and model.training)

        def answer(x: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(kind, enabled=False):
                return copy(x.to(half), labels).float()

        yield answer
        return
    with frozen_weights(model), nullcontext() if dropout else evaluation_mode(model):
        yield lambda x, labels: model(x, labels).float()


def classification_gradient(
    classifier: nn.Module, labels: Tensor, delta: Tensor, clean_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gradient with respect to ``delta`` of the classifier's cross-entropy on ``clean_of(delta)``, [B, C, H, W].

    ``clean_of`` gives images in [-1, 1]; they are not clamped. The sum over the batch is differentiated, so
    that an image's gradient does not depend on the others.
    """
    point = delta.detach().requires_grad_(True)
    logits = call_frozen(classifier, (clean_of(point) + 1) / 2)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels, reduction="sum"), point)
    return gradient


class Loss(Protocol):
    """What the loop asks of a loss."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of every image, float32 ``[B]``; the loop takes the mean."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The loss's configuration, as plain values: part of what a continued run must match."""
        ...


@final
@dataclass(frozen=True)
class Augment:
    """Random changes that keep the label.

    Fields:
        shift: each image moves by up to that many pixels in both directions; what comes in is black.
        flip: each image is mirrored left to right with probability 1/2.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        whole("shift", self.shift, 0)

    def __call__(self, images: Tensor, random: StepRandom) -> Tensor:
        """Images ``[B, C, H, W]`` -> changed copies; nothing else of the input is touched."""
        if self.shift:
            images = _shifted(images, random.integers(Purpose.SHIFT, 0, 2 * self.shift, 2), self.shift)
        if self.flip:
            mirrored = random.integers(Purpose.FLIP, 0, 1).bool().view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(3), images)
        return images


def _shifted(images: Tensor, offsets: Tensor, margin: int) -> Tensor:
    """Windows of the padded images that start at ``offsets`` (int64 ``[B, 2]``, 0..2 margin)."""
    count, _, height, width = images.shape
    padded = F.pad(images, (margin,) * 4).permute(0, 2, 3, 1)
    item = torch.arange(count, device=images.device).view(-1, 1, 1)
    row = offsets[:, 0].view(-1, 1, 1) + torch.arange(height, device=images.device).view(1, -1, 1)
    column = offsets[:, 1].view(-1, 1, 1) + torch.arange(width, device=images.device).view(1, 1, -1)
    return padded[item, row, column].permute(0, 3, 1, 2).contiguous()


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Treat the weights as constants inside the block, as an inner loop that perturbs images wants them.

    The networks of `fastpure.nets` then keep for the backward pass only what the gradient with respect to the
    image needs, and no ``.grad`` of a weight is touched. Not for one network in two threads at a time.
    """
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Leave the buffers, such as running statistics, afterwards as they were before the block."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (hexadecimal) of a module's class, parameters and buffers: says whether two runs used the same."""
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
