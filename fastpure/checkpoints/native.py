"""fastpure's own format: safetensors, with everything needed to rebuild the denoiser in the metadata."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError, listed, mistake, one_of
from ..files import replace_file
from ..nets import Denoiser, config_dict, named_config
from ..nets.conversion import PREDICTIONS, TIME_INPUTS, conventions
from ..nets.registry import ARCHITECTURES, SINCE
from ..schedule import VP
from .fields import Fields, names, require_fields
from .report import Plan
from .sources import Source
from .weights import parse_json

_VERSION = "1"
#: Fields that the first files do not have; their defaults are what networks were before.
_YOUNGER = names(
    """block embedding embedding_mult fir residual_input classes class_label cosine_steps"""
).union(SINCE)
#: Files without a schedule are older than the choice; only flow networks have the last two.
_CONVENTIONS = Fields(
    "fastpure",
    honoured=names("schedule image_shape learned_sigma data_at time_scale"),
    required={"prediction": PREDICTIONS, "time_input": TIME_INPUTS},
    defaults={"schedule": "linear", "data_at": None, "time_scale": None},
)
_RESERVED = ("format", "kind", "version", "architecture", "config", "denoiser")


def is_native(source: Source) -> bool:
    """Whether the file was written by fastpure (a denoiser or anything else)."""
    return source.metadata.get("format") == "fastpure"


def save_denoiser(
    denoiser: Denoiser,
    path: str | Path,
    *,
    notes: dict[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write weights and configuration, atomically: a crash leaves the old file or the new one.

    Args:
        notes: further metadata (training command, loss), strings by name.
        dtype: stored precision; None keeps the network's. Half precision is read back as float32.

    Raises:
        TypeError: a network of no known architecture, which only its own code could rebuild.
        ValueError: a weight is not finite (in ``dtype``), or a note takes one of the format's own names.
    """
    config = config_dict(denoiser.network)
    clashes = sorted(set(_RESERVED) & set(notes or {}))
    if clashes:
        raise ValueError(mistake("notes", f"free of the names {', '.join(_RESERVED)}", ", ".join(clashes)))
    said = {name: getattr(denoiser, name) for name in ("prediction", "time_input", "learned_sigma")}
    if denoiser.schedule != "linear":  # files without the field are linear
        said["schedule"] = denoiser.schedule
    if denoiser.path is not None:
        said |= {"data_at": denoiser.path.data_at, "time_scale": denoiser.path.time_scale}
    metadata = {
        **(notes or {}),
        "format": "fastpure",
        "kind": "denoiser",
        "version": _VERSION,
        "architecture": config.pop("architecture"),
        "config": json.dumps(config, sort_keys=True),
        "denoiser": json.dumps({**said, "image_shape": denoiser.image_shape}, sort_keys=True),
    }
    weights = {name: _stored(name, value, dtype) for name, value in denoiser.network.state_dict().items()}
    return replace_file(path, save(weights, metadata))


def plan_native(source: Source, config: Any = None) -> Plan:
    """Understand a file of `save_denoiser`. Weights stored in half precision become float32.

    Raises:
        CheckpointError: of another kind or version, or a damaged description.
        ValueError: a configuration was given, though the file has its own.
    """
    if config is not None:
        raise ValueError(
            mistake("config", "None for a fastpure file, which has its own", type(config).__name__)
        )
    path, metadata = source.path, source.metadata
    found = tuple(metadata.get(name, "none") for name in ("format", "kind", "version"))
    if found != ("fastpure", "denoiser", _VERSION):
        expected = f"format fastpure, kind denoiser, version {_VERSION}"
        raise CheckpointError(f"{path}: expected {expected}, found {found[0]}, {found[1]}, {found[2]}")
    try:
        fields = require_fields(parse_json(metadata["config"], f"{path}, config"), f"{path}, config")
        config_fields = require_complete(
            {"architecture": metadata["architecture"], **fields}, f"{path}, config"
        )
        architecture, values = named_config(config_fields)
        described = parse_json(metadata["denoiser"], f"{path}, denoiser")
        said, _ = _CONVENTIONS.read(described, str(path), "denoiser")
        flow = {name: said[name] for name in ("data_at", "time_scale")}
        conventions(said["prediction"], said["time_input"], said["schedule"], **flow)
        channels, height, width = said["image_shape"]
        return Plan(
            architecture,
            values,
            source.require_tensors(),
            image_shape=(channels, height, width),
            prediction=said["prediction"],
            time_input=said["time_input"],
            schedule=said["schedule"],
            **flow,
            learned_sigma=one_of("learned_sigma", said["learned_sigma"], (False, True)),
            notes=tuple(f"{name}: {metadata[name]}" for name in sorted(set(metadata) - set(_RESERVED))),
            t_max=None if said["schedule"] in ("flow", "flowpure") else _trained_to(metadata),
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: damaged description in the metadata: {error!r}") from error


def _trained_to(metadata: Mapping[str, str]) -> float | None:
    """Latest diffusion time in what training noted, None where it noted none."""
    # Notes are free text; these are `fastpure.train`'s, its first files' outside the loss.
    noted = [_number(metadata.get("t_max"))]
    try:
        loss = json.loads(metadata.get("loss", "null"))
    except ValueError:
        loss = None
    if isinstance(loss, dict):
        levels = loss.get("levels")
        noted += [_number(loss.get(name)) for name in ("t_max", "t_end_max")]
        if isinstance(levels, dict):
            level = _number(levels.get("sigma_max"))
            noted += [
                _number(levels.get("t_max")),
                VP().time_of(-math.log(level)) if level and level > 0 else None,
            ]
    return next((time for time in noted if time is not None and 0 < time <= 1), None)


def _number(noted: object) -> float | None:
    try:
        return float(noted) if isinstance(noted, str | int | float) else None
    except ValueError:
        return None


def require_complete(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """``fields`` of a network if none is left out: what we write is whole, so a missing one is damage, no default.

    Raises:
        CheckpointError: one is missing.
        ValueError: an unknown architecture.
    """
    kind = ARCHITECTURES[one_of("architecture", fields["architecture"], ARCHITECTURES)][0]
    expected = {field.name for field in dataclasses.fields(kind)} - _YOUNGER
    if missing := sorted(expected - set(fields)):
        raise CheckpointError(f"{source}: {listed(missing)} missing")
    if isinstance(inner := fields.get("network"), dict):
        require_complete(inner, f"{source}, network")
    return fields


def _stored(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    stored = value.detach().to(device="cpu", dtype=dtype).contiguous()
    if not stored.isfinite().all():
        raise ValueError(mistake("denoiser", f"finite in {stored.dtype}", f"NaN or Inf in {name}"))
    return stored
