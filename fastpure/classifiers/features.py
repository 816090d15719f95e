"""Features and logits in one pass: what a guidance in latent space asks of a classifier."""

from __future__ import annotations

from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import mistake, one_of
from .base import SWAPPING, call_frozen


@runtime_checkable
class FeatureClassifier(Protocol):
    """A classifier that also gives the features its logits are made of."""

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F] and logits [B, classes] of images [B, C, H, W] in [0, 1]."""
        ...


@final
class FeatureHead(nn.Module):
    """Any classifier with its features taken from the input of one of its modules.

    Args:
        network: images in [0, 1], [B, C, H, W] -> logits [B, classes].
        head: name of the module whose input are the features, usually the last linear layer ("fc", "head").

    ``forward`` is the network's. Threads that ask for features take turns.

    Raises:
        TypeError: ``network`` is no module.
        ValueError: it has no module called ``head``.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(mistake("network", "a torch.nn.Module", type(network).__name__))
        one_of("head", head, [name for name, _ in network.named_modules() if name])
        self.network = network
        self.head = head
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes]."""
        return self.network(x)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See ``FeatureClassifier``; the head's input is flattened to [B, F]."""
        seen: list[Tensor] = []

        def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.append(arguments[0])

        with SWAPPING:
            handle = self.network.get_submodule(self.head).register_forward_pre_hook(look)
            try:
                logits = self.network(x)
            finally:
                handle.remove()
        if len(seen) != 1:
            raise ValueError(mistake("head", "a module called once per image", f"{len(seen)} calls"))
        return seen[0].flatten(1), logits


class _Both(nn.Module):
    """Makes ``features_and_logits`` the forward pass, so that ``call_frozen`` applies."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.features_and_logits(x)  # type: ignore[operator]


def frozen_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, F] and logits [B, classes] with the weights as constants; see ``call_frozen``."""
    return call_frozen(_Both(network), x)  # type: ignore[return-value]


def require_features(network: nn.Module, argument: str) -> nn.Module:
    """Return ``network`` if it is a ``FeatureClassifier``.

    Raises:
        TypeError: it is no module.
        ValueError: it has no ``features_and_logits``.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(mistake(argument, "a torch.nn.Module", type(network).__name__))
    if not isinstance(network, FeatureClassifier):
        linear = [name for name, part in network.named_modules() if name and isinstance(part, nn.Linear)]
        remedy = (
            f"Wrap it with fastpure.classifiers.FeatureHead(network, head={linear[-1] if linear else 'fc'!r}), naming "
            "the layer whose input are the features"
        )
        expected = "a network with features_and_logits(x)"
        raise ValueError(mistake(argument, expected, type(network).__name__, remedy))
    return network


def probe_classes(network: nn.Module, image_shape: tuple[int, int, int], argument: str) -> int:
    """How many classes ``network`` tells apart, found by calling it on one grey image.

    Raises:
        ValueError: it does not take images of ``image_shape``, or does not return logits [B, classes].
    """
    like = next(iter(network.parameters()), torch.empty(0))
    grey = torch.full((1, *image_shape), 0.5, dtype=like.dtype, device=like.device)
    expected = f"a network for images {list(image_shape)}"
    try:
        with torch.no_grad():
            logits = call_frozen(network, grey)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(mistake(argument, expected, f"an error: {str(error).splitlines()[0]}")) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
        found = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(mistake(argument, f"{expected} that returns logits [B, classes]", found))
    return logits.shape[1]
