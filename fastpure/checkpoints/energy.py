"""Energies as safetensors, and `load_energy`: a bundled name, a file of fastpure, or the caller's own module."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from .. import zoo
from ..errors import CheckpointError, mistake
from ..files import replace_file
from ..nets import EnergyConfig, EnergyNet
from .fields import require_fields
from .weights import fill, parse_json, read_safetensors, refuse_inflated

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
        source: a bundled name ("digits"), a file that fastpure wrote, or any such ``nn.Module``, which comes back as it
            is. Files of other projects are refused, Hill et al.'s among them: how their networks are laid out is not
            established here, and a guess could be another energy. Build such a network with its own code and give
            the module.

    Returns:
        The network in evaluation mode, its weights frozen, float32 unless stored in float64.

    Raises:
        ValueError: no such name or file.
        CheckpointError: not a whole energy of fastpure; the message gives the file and the reason.
    """
    if isinstance(source, nn.Module):
        return source
    if str(source) in zoo.ENERGIES:
        source = zoo.weights_path("energy", str(source))
    path = Path(source)
    if not path.is_file():
        expected = f"a bundled name ({', '.join(zoo.ENERGIES)}), a file or a module"
        raise ValueError(mistake("source", expected, str(source)))
    remedy = "Build the network with its own code and give the module itself"
    try:
        metadata, weights = read_safetensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Only fastpure's own energies are read. {remedy}") from error
    found = tuple(metadata.get(name, "none") for name in ("format", "kind", "version", "architecture"))
    if found != ("fastpure", "energy", "1", "energy"):
        expected = "format fastpure, kind energy, version 1, architecture energy"
        raise CheckpointError(f"{path}: expected {expected}, found {', '.join(found)}. {remedy}")
    try:
        values = require_fields(parse_json(metadata["config"], f"{path}, config"), f"{path}, config")
        config = EnergyConfig.from_dict(values)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged description in the metadata: {error!r}") from error
    refuse_inflated(weights, path.stat().st_size, str(path))
    return fill(lambda: EnergyNet(config), weights, str(path))
