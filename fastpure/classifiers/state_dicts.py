"""Reading other people's weight files: tensors by plain names, whatever they were wrapped in.

No code in a file is ever run, see `fastpure.checkpoints.sources.load_torch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints.sources import load_torch
from ..checkpoints.weights import read_safetensors
from ..errors import CheckpointError
from .fitting import listed

__all__ = ["StateDict", "read_weights"]

#: Names under which training scripts store the weights beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "net", "model")
#: Prefixes of data-parallel training and of wrappers that normalise, in the order they come off.
_PREFIXES = ("module.", "model.")
#: Names under which wrappers keep the input normalisation.
_MEAN_STD = (("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std"))


@dataclass(frozen=True)
class StateDict:
    """Tensors by plain names, and the input normalisation that stood among them (mean and std, or None)."""

    tensors: dict[str, Tensor]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None


def read_weights(path: Path) -> StateDict:
    """The weights in a safetensors file or in one of ``torch.save``: wrappers and prefixes taken off.

    Raises:
        CheckpointError: no such file, damaged, not tensors by name, or objects that the restricted
            unpickler refuses; the message gives the file and the reason.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    stored = path.suffix == ".safetensors"
    return _plain(read_safetensors(path)[1] if stored else _unwrapped(load_torch(path), path), path)


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: expected tensors by name, found {type(content).__name__}")
    if _is_tensors(content):
        return dict(content)
    inside = [name for name in _WRAPPERS if _is_tensors(content.get(name))]
    if len(inside) == 1:
        return dict(content[inside[0]])
    expected = f"tensors by name, or one of {', '.join(_WRAPPERS)} holding them"
    raise CheckpointError(f"{path}: expected {expected}, found {listed(map(str, content))}")


def _is_tensors(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _plain(tensors: dict[str, Tensor], path: Path) -> StateDict:
    """Prefixes off where every name has them; the normalisation apart."""
    normalisation = None
    for prefix in _PREFIXES:
        found, tensors = _take_normalisation(tensors, path)
        normalisation = normalisation or found
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    found, tensors = _take_normalisation(tensors, path)
    return StateDict(tensors, normalisation or found)


def _take_normalisation(
    tensors: dict[str, Tensor], path: Path
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]] | None, dict[str, Tensor]]:
    for names in _MEAN_STD:
        if not all(name in tensors for name in names):
            continue
        mean, std = (tuple(tensors[name].double().flatten().tolist()) for name in names)
        if len(mean) != len(std) or not all(0 < value < float("inf") for value in std):
            raise CheckpointError(f"{path}: {names[0]}, {names[1]} are no normalisation: {mean}, {std}")
        return (mean, std), {name: value for name, value in tensors.items() if name not in names}
    return None, tensors
