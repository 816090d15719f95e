"""Energies as safetensors, and `load_energy`: a bundled name, a file of fastpure, or the caller's own module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .. import zoo
from ..errors import CheckpointError, mistake
from ..files import replace_file
from ..nets import EnergyConfig, EnergyNet, HillEnergyNet
from .fields import require_fields
from .sources import Source, open_source
from .weights import fill, parse_json, refuse_inflated

FIRST: Final = "f.0.weight"
"""By this name Hill et al.'s networks are known."""

_RESERVED = ("format", "kind", "version", "architecture", "config")


def save_energy(
    energy: EnergyNet,
    path: str | Path,
    *,
    notes: dict[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write weights and configuration, atomically: a crash leaves the old file or the new one.

    Args:
        notes: further metadata (training command), strings by name.
        dtype: stored precision; None keeps the network's. Half precision is read back as float32.

    Raises:
        TypeError: another network, which only its own code could rebuild.
        ValueError: a weight is not finite (in ``dtype``), or a note takes one of the format's own names.
    """
    if not isinstance(energy, EnergyNet):
        raise TypeError(mistake("energy", "an EnergyNet", type(energy).__name__))
    if clashes := sorted(set(_RESERVED) & set(notes or {})):
        raise ValueError(mistake("notes", f"free of the names {', '.join(_RESERVED)}", ", ".join(clashes)))
    metadata = {
        **(notes or {}),
        "format": "fastpure",
        "kind": "energy",
        "version": "1",
        "architecture": "energy",
        "config": json.dumps(energy.config.to_dict(), sort_keys=True),
    }
    weights = {}
    for name, value in energy.state_dict().items():
        weights[name] = value.detach().to(device="cpu", dtype=dtype).contiguous()
        if not weights[name].isfinite().all():
            raise ValueError(mistake("energy", f"finite in {weights[name].dtype}", f"NaN or Inf in {name}"))
    return replace_file(path, save(weights, metadata))


@torch.inference_mode(False)
def load_energy(source: str | Path | nn.Module) -> nn.Module:
    """An energy for ``fp.methods.ebm_langevin``: from images in [-1, 1], [B, C, H, W], to energies [B].

    Args:
        source: a bundled name ("digits"), a file that fastpure wrote, a network that Hill et al. 2021 published or that
            their code trained (a `HillEnergyNet`), or any such ``nn.Module``, which comes back as it is. Hill et al.'s
            own module answers the energy times 0.01^2 / 2 and is no such module: give the file.

    Returns:
        The network in evaluation mode, its weights frozen, float32 unless stored in float64.

    Raises:
        ValueError: no such name or file.
        CheckpointError: not a whole energy of one of the two; the message gives the file and the reason.
    """
    if isinstance(source, nn.Module):
        return source
    if str(source) in zoo.ENERGIES:
        source = zoo.weights_path("energy", str(source))
    path = Path(source)
    if not path.is_file():
        expected = f"a bundled name ({', '.join(zoo.ENERGIES)}), a file or a module"
        raise ValueError(mistake("source", expected, str(source)))
    file = open_source(path)
    found = tuple(file.metadata.get(name, "none") for name in ("format", "kind", "version", "architecture"))
    if found == ("fastpure", "energy", "1", "energy"):
        return _own(path, file)
    ours = found[0] == "fastpure"
    if not ours and FIRST in file.tensors:
        return _hill(path, file.tensors)
    what = f"found format {', kind '.join(found[:2])}" if ours else f"found {file.summary()}"
    raise CheckpointError(
        f"{path}: neither an energy of fastpure nor the network of Hill et al. 2021 ({FIRST}, ...): {what}. Build the "
        "network with its own code and give the module itself"
    )


def _own(path: Path, file: Source) -> EnergyNet:
    try:
        text = file.metadata["config"]
        config = EnergyConfig.from_dict(
            require_fields(parse_json(text, f"{path}, config"), f"{path}, config")
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged description in the metadata: {error!r}") from error
    refuse_inflated(file.content, path.stat().st_size, str(path))
    return fill(lambda: EnergyNet(config), file.content, str(path))


def _hill(path: Path, weights: dict[str, Tensor]) -> HillEnergyNet:
    refuse_inflated(weights, path.stat().st_size, str(path))
    shape = tuple(weights[FIRST].shape)
    if len(shape) != 4 or not all(shape):
        raise CheckpointError(f"{path}: expected {FIRST} [width, channels, 3, 3], found {list(shape)}")
    return fill(lambda: HillEnergyNet(shape[1], shape[0]), weights, str(path))
