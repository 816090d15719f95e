"""What a network must offer for its time embedding to be computed once per table; checks of shapes and classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, final
from weakref import ref

import torch
from torch import Tensor, nn

from ..errors import mistake, whole


class HoistedNetwork(nn.Module, ABC):
    """A network that splits into what depends on the label only and the rest.

    All images of a batch share the noise label of the step, and every purification with the same table walks
    through the same labels, so the first part is computed once and reaches the second as one vector.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()

    @abstractmethod
    def embedding(self, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Embeddings [N, S] of labels [N], in the network's dtype; ``classes`` as for `class_vectors`."""

    @abstractmethod
    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Output for images [B, C, H, W] and their embedding, [1, S] (one label for all images) or [B, S]."""


def checked_shape(shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """``shape`` as three positive integers; ValueError if it is not."""
    if not isinstance(shape, tuple | list | torch.Size) or len(shape) != 3:
        raise ValueError(mistake("image_shape", "(channels, height, width)", repr(shape)))
    channels, height, width = (whole("image_shape", value, 1) for value in shape)
    return channels, height, width


LARGEST = {"image_size": 8192, "channels": 1024, "width": 65536, "count": 4096, "classes": 1_000_000}
"""Sizes beyond which a configuration is a mistake or an attack on memory and time, not a network."""

_MOST_LEVELS, _MOST_BLOCKS = 12, 512


def check_depth(levels: int, n_blocks: int) -> None:
    """Raise ValueError where so many levels of so many blocks would take for ever to be laid out."""
    if levels > _MOST_LEVELS:
        raise ValueError(mistake("config", f"of at most {_MOST_LEVELS} levels", levels))
    if levels * n_blocks > _MOST_BLOCKS:
        expected = f"such that all levels have {_MOST_BLOCKS} blocks at most"
        raise ValueError(mistake("n_blocks", expected, f"{n_blocks} in each of {levels}"))


def same_layout(output: Tensor, x: Tensor) -> Tensor:
    """``output`` in the memory format of ``x``."""
    if x.is_contiguous():
        return output.contiguous()
    return output.contiguous(memory_format=torch.channels_last)


def is_hooked(module: nn.Module) -> bool:
    """Whether the module itself has hooks that run when it is called."""
    own = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(own)


PLAIN = (Tensor, nn.Parameter)
"""Types of tensors that have memory; those of a tracer may have none."""


def identity_of(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor lies and how often it was changed, as far as torch counts that."""
    counted = 0 if tensor.is_inference() else tensor._version
    return (tensor.data_ptr() if type(tensor) in PLAIN else id(tensor), counted)


def state_of(modules: Iterable[nn.Module]) -> tuple[int, ...]:
    """Equal as long as every tensor of the modules is the same one, unchanged, and every module has the same parts."""
    found: list[int] = []
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    found += identity_of(tensor)
        found += map(id, module._modules.values())
    return tuple(found)


@final
class Watch:
    """Looks at one network before every pass, which must cost little: a pass of a small one takes milliseconds."""

    def __init__(self) -> None:
        # Weak: the network has it, and would keep itself.
        self._known: tuple[ref[nn.Module], ...] = ()
        self._children: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return Watch()  # a copy has modules of its own

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        return Watch, ()

    def _modules(self, network: nn.Module) -> list[nn.Module]:
        """Its modules now; walking through them takes longer than seeing that they are those of last time."""
        known = [module for module in (watched() for watched in self._known) if module is not None]
        if not known or known[0] is not network or _children_of(known) != self._children:
            known = list(network.modules())
            self._children, self._known = _children_of(known), tuple(map(ref, known))
        return known

    def sees(self, network: nn.Module) -> tuple[bool, bool]:
        """Whether somebody looks at a module's calls, and whether a weight requires a gradient."""
        modules = self._modules(network)
        trained = any(
            weight is not None and weight.requires_grad
            for module in modules
            for weight in module._parameters.values()
        )
        return any(map(is_hooked, modules)), trained

    def state(self, network: nn.Module) -> tuple[int, ...]:
        """Changes when a weight or buffer does, as far as torch counts that."""
        return state_of(self._modules(network))


def _children_of(modules: Iterable[nn.Module]) -> list[int]:
    return [id(child) for module in modules for child in module._modules.values()]


@final
class Weights:
    """Which tensors some networks have now, and how often each was changed: what is derived from them is keyed on it.

    torch counts changes in place (optimizer steps, ``load_state_dict``, ``mul_`` under ``no_grad``), but not those
    through ``tensor.data`` or NumPy's view of a tensor: these it takes all values to see.
    """

    def __init__(self, *networks: nn.Module) -> None:
        # Weak, so that watching a network does not keep it.
        self._modules = tuple(ref(module) for network in networks for module in network.modules())

    def _alive(self) -> Iterator[nn.Module]:
        return (module for module in (watched() for watched in self._modules) if module is not None)

    def state(self) -> tuple[int, ...]:
        """Equal as long as every tensor is the same one, unchanged, and every module has the same parts."""
        return state_of(self._alive())

    def hooked(self) -> bool:
        """Whether somebody looks at a module's calls: then every module must be called, by nothing but itself."""
        return any(map(is_hooked, self._alive()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        return Weights()  # of nothing: whoever copies networks watches the copies anew

    def __reduce__(self) -> tuple[type[Weights], tuple[()]]:
        return Weights, ()
