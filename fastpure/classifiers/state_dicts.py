"""Reading other people's weight files: tensors by plain names, whatever they were wrapped in.

No code in a file is ever run, and averaged weights are taken where there are any, see `fastpure.checkpoints`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints.sources import open_source
from ..checkpoints.weights import refuse_inflated
from ..errors import CheckpointError, mistake
from .normalised import MeanStd, mean_and_std

#: Prefixes of data-parallel training, of a Sequential with one network in it (DiffPure's file of the Swish WRN-70-16)
#: and of wrappers that normalise, in the order they come off.
_PREFIXES = ("module.", "0.", "model.")
#: Names under which wrappers keep the input normalisation.
_MEAN_STD = (("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std"))


@dataclass(frozen=True)
class StateDict:
    """Tensors by plain names, the input normalisation that stood among them (mean and std, or None), which weights
    they are, and what else the file holds."""

    tensors: dict[str, Tensor]
    normalisation: MeanStd | None
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


def refuse_another(normalise: Any, own: MeanStd, source: str) -> None:
    """Raise ValueError if ``normalise`` was given and says another thing than ``own``, which stands in the file."""
    if normalise is None:
        return
    given = mean_and_std(normalise)
    if given is None or not all(
        len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True))
        for a, b in zip(given, own, strict=True)
    ):
        raise ValueError(mistake("normalise", f"None, since {source} has its own, {own}", normalise))


def _plain(tensors: dict[str, Tensor], path: Path) -> StateDict:
    """Prefixes off where every name has them; the normalisation apart."""
    taken = []
    for prefix in (*_PREFIXES, ""):
        found, tensors = _take_normalisation(tensors, path)
        taken += [] if found is None else [found]
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if len(taken) > 1:
        both = " and ".join(f"{mean}, {std}" for mean, std in taken)
        raise CheckpointError(
            f"{path}: expected one normalisation, found {len(taken)} around one another: {both}. Build the network by "
            "its own code and give the module"
        )
    return StateDict(tensors, taken[0] if taken else None)


def _take_normalisation(tensors: dict[str, Tensor], path: Path) -> tuple[MeanStd | None, dict[str, Tensor]]:
    for names in _MEAN_STD:
        if not all(name in tensors for name in names):
            continue
        mean, std = (tuple(tensors[name].double().flatten().tolist()) for name in names)
        if len(mean) != len(std) or not all(0 < value < float("inf") for value in std):
            raise CheckpointError(f"{path}: {names[0]}, {names[1]} are no normalisation: {mean}, {std}")
        if not all(abs(value) <= 1 for value in mean):
            raise CheckpointError(
                f"{path}: {names[0]}, {names[1]} must be those of images in [0, 1], found {mean}, {std}, of 0..255 it "
                "seems: what its network does besides stands in its own code. Build it by that and give the module"
            )
        return (mean, std), {name: value for name, value in tensors.items() if name not in names}
    return None, tensors
