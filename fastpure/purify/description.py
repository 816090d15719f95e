"""Networks, methods and settings as plain values: what identities of runs are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..methods import Method
from ..schedule import StepTable

UNESSENTIAL = frozenset({"batch_size"})
"""Fields that may differ between sessions of one run."""


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Class, size and checksum of a network."""
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "parameters": sum(p.numel() for p in module.parameters()),
        "sha256": weights_sha256(module),
    }


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 (hexadecimal) of the network's printed structure and of all its parameters and buffers."""
    digest = hashlib.sha256(repr(module).encode())
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """``value`` as JSON types; networks and tables become checksums, dataclasses their fields."""
    if isinstance(value, Method):
        return {
            "name": value.name,
            "settings": {name: plain(setting) for name, setting in value.settings},
            "steps": value.steps.digest,
            "guidance": plain(value.guidance),
            "procedure": plain(value.procedure),
            "schedule": value.schedule,
            "clip_output": value.clip_output,
        }
    if isinstance(value, StepTable):
        return value.digest
    if isinstance(value, nn.Module):
        return describe_module(value)
    if isinstance(value, Tensor | np.ndarray):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.name not in UNESSENTIAL}
        return {"name": type(value).__name__, "settings": named}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)
