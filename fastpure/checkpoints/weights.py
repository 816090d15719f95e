"""Tensors by name: reading files of them, and filling a network only when every name and shape fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError

Network = TypeVar("Network", bound=nn.Module)
_SHOWN = 4


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors by name) of a safetensors file.

    Raises:
        CheckpointError: no such file, truncated, or not a safetensors file.
    """
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; empty for any other file."""
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a ``torch.save`` file; no code in the file is ever run.

    Raises:
        CheckpointError: no such file, damaged, holding anything but tensors by name, or objects that the
            restricted unpickler refuses.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[1]
    _require_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise about every type there is
        # Only the first sentence: torch goes on to advise loading it without the restriction.
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        expected = "a state dict, neither damaged nor a training checkpoint or pickled module"
        raise CheckpointError(f"{path}: not readable as {expected}: {reason}") from error
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: expected tensors by name, found {type(content).__name__}")
    foreign = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(f"{path}: expected tensors by name, but {_listed(foreign)} hold something else")
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: no such file, or not JSON.
    """
    _require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file: {error}") from error


def fill(build: Callable[[], Network], tensors: dict[str, Tensor], source: str) -> Network:
    """``build()`` with ``tensors`` as its weights: frozen, in evaluation mode.

    The network is built without memory and every name, shape and kind is checked first, so that nothing is
    ever partly loaded. Half-precision weights become float32; float64 ones stay.

    Raises:
        CheckpointError: the tensors do not fit; the message says how many, which, and what was expected.
    """
    with torch.device("meta"):
        network = build()
    expected = network.state_dict()
    problems = _misfits({name: value.shape for name, value in expected.items()}, tensors)
    if problems:
        found = f"{len(tensors)} tensors, expected {len(expected)}"
        raise CheckpointError(f"{source}: weights do not fit {type(network).__name__}: {found}; {problems}")
    exact = all(value.dtype == torch.float64 for value in tensors.values())
    dtype = torch.float64 if exact else torch.float32
    # 4-dimensional weights are convolutions', which the networks keep in channels_last.
    weights = {
        name: tensors[name].to(
            dtype=dtype, memory_format=torch.channels_last if value.ndim == 4 else torch.contiguous_format
        )
        for name, value in expected.items()
    }
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def _misfits(expected: dict[str, torch.Size], tensors: dict[str, Tensor]) -> str:
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    common = [name for name in expected if name in tensors]
    shapes = [
        f"{name} (expected {list(expected[name])}, found {list(tensors[name].shape)})"
        for name in common
        if tensors[name].shape != expected[name]
    ]
    kinds = [f"{name} ({tensors[name].dtype})" for name in common if not tensors[name].is_floating_point()]
    values = [
        name for name in common if tensors[name].is_floating_point() and not tensors[name].isfinite().all()
    ]
    found = {
        "missing": missing,
        "unknown": unknown,
        "of another shape": shapes,
        "not floating": kinds,
        "with NaN or Inf": values,
    }
    return "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in found.items() if names)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
