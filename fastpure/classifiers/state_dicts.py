"""Reading other people's weight files: tensors by plain names, whatever they were wrapped in.

No code in a file is ever run, and averaged weights are taken where there are any, see `fastpure.checkpoints`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..checkpoints.sources import open_source
from ..checkpoints.weights import refuse_inflated
from ..errors import CheckpointError

#: Prefixes of data-parallel training and of wrappers that normalise, in the order they come off.
_PREFIXES = ("module.", "model.")
#: Names under which wrappers keep the input normalisation.
_MEAN_STD = (("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std"))


@dataclass(frozen=True)
class StateDict:
    """Tensors by plain names, the input normalisation that stood among them (mean and std, or None), which weights
    they are, and what else the file holds."""

    tensors: dict[str, Tensor]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    said: str = "as in the file"
    dropped: tuple[str, ...] = ()


def read_weights(path: Path, weights: str | None = None) -> StateDict:
    """The weights in a safetensors file or in one of ``torch.save``: wrappers and prefixes taken off.

    Args:
        weights: which of several sets in it, see `fastpure.checkpoints.choice`.

    Raises:
        ValueError: ``weights`` names none of them.
        CheckpointError: no such file, damaged, not tensors by name, several sets of them, or objects that the
            restricted unpickler refuses; the message gives the file and the reason.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    source = open_source(path, weights)
    chosen = source.chosen
    if chosen is None:
        expected = "tensors by name, or entries that hold them (state_dict, model, ema, ...)"
        raise CheckpointError(f"{path}: expected {expected}, found {source.summary()}")
    refuse_inflated(chosen.value, path.stat().st_size, str(path))
    return replace(_plain(chosen.value, path), said=chosen.said, dropped=source.others_dropped())


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
