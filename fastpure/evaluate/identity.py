"""What a run is: defence, attack, data and protocol as plain values, with SHA-256 of every weight.

Two runs with the same identity give the same result; what cannot change it (batch sizes, device, threads) stays
out and is recorded per session instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Dataset
from ..methods import Method
from ..purify import Defense
from ..schedule import StepTable
from ..version import __version__
from .protocol import FIRST_DRAW, Protocol

UNESSENTIAL = frozenset({"batch_size"})
"""Fields that may differ between sessions of one run."""


def identity(defense: nn.Module, dataset: Dataset, attack: Any, protocol: Protocol) -> dict[str, Any]:
    """Everything the result depends on, as values JSON can hold."""
    return {
        "defense": describe_defense(defense),
        "attack": None if attack is None else plain(attack),
        "protocol": {**protocol.to_dict(), "hash": protocol.hash, "first_draw": FIRST_DRAW},
        "data": {
            "name": dataset.name,
            "split": dataset.split,
            "n": len(dataset),
            "image_shape": list(dataset.image_shape),
            "classes": list(dataset.classes),
            "checksum": dataset.checksum,
        },
    }


def describe_defense(defense: nn.Module) -> dict[str, Any]:
    """The defence's parts, settings and weights."""
    if not isinstance(defense, Defense):
        return {"kind": "module", "classifier": describe_module(defense)}
    purifier = defense.purifier
    return {
        "kind": "defense",
        "purifier": {"class": type(purifier).__name__, "image_shape": list(purifier.image_shape)},
        "method": plain(purifier.method),
        "seed": purifier.seed,
        "precision": purifier.precision,
        "gradient_precision": purifier.gradient_precision,
        "denoiser": {**purifier.denoiser.describe(), "sha256": weights_sha256(purifier.denoiser)},
        "classifier": describe_module(defense.classifier),
    }


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


def canonical(value: Any) -> str:
    """JSON text that is equal exactly when the values are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)


def differences(saved: Any, wanted: Any, path: str = "") -> list[str]:
    """The leaves in which two plain values differ, as ``path: saved -> wanted``."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        found = []
        for name in sorted(saved.keys() | wanted.keys()):
            where = f"{path}.{name}" if path else name
            found += differences(saved.get(name), wanted.get(name), where)
        return found
    return [] if canonical(saved) == canonical(wanted) else [f"{path}: {_short(saved)} -> {_short(wanted)}"]


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine and threads of this session, and a fingerprint of the code."""
    cuda = device.type == "cuda"
    return {
        "fastpure": __version__,
        "code_sha256": code_sha256(),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


@cache
def code_sha256() -> str:
    """SHA-256 of the package's Python files and compiled extension, by relative path."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.glob("_C*.so"))):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = canonical(value) if value is not None else "nothing"
    return text if len(text) <= 60 else text[:57] + "..."
