"""Networks, methods and settings as plain values: what identities of runs are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels import Domain, NoiseKeys, Stream, philox_uniform
from ..methods import Method
from ..schedule import StepTable
from ..shown import in_full

UNESSENTIAL = frozenset({"batch_size"})
"""Fields that may differ between sessions of one run."""

LATER = {"later": True}
"""Metadata of a field that is younger than run files: at its default it stays out of identities, as if it were not."""


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Class, size and checksum of a network."""
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "parameters": sum(p.numel() for p in module.parameters()),
        "sha256": weights_sha256(module),
    }


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 (hexadecimal) of the network's printed structure and of all its parameters and buffers."""
    with in_full():
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
        # Named where there is one: run files are older than preparations.
        prepared = {} if value.prepare is None else {"prepare": plain(value.prepare)}
        return {
            "name": value.name,
            "settings": {name: plain(setting) for name, setting in value.settings},
            "steps": value.steps.digest,
            "guidance": plain(value.guidance),
            "procedure": plain(value.procedure),
            "schedule": value.schedule,
            "clip_output": value.clip_output,
            **prepared,
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
        named = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in UNESSENTIAL}
        for f in fields(value):
            if f.metadata.get("later") and named[f.name] == f.default:
                del named[f.name]
        return {"name": type(value).__name__, "settings": {name: plain(v) for name, v in named.items()}}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)


PROBES = 2
"""Images on which networks are asked what they answer."""

KEPT = 24
"""Numbers that are kept of an answer."""

TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Share of the largest number by which answers of one network may differ between devices and instruction sets."""


def probe_images(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The images [PROBES, C, H, W] in [0, 1], the same everywhere and for ever."""
    keys = NoiseKeys.make(seed=0, sample_ids=range(PROBES), draw=0, domain=Domain.EVALUATION, device="cpu")
    return philox_uniform(keys, 0, Stream.ATTACK_START, shape).to(device, dtype)


def kept_of(answer: Tensor, precision: torch.dtype = torch.float32) -> dict[str, Any]:
    """Evenly spaced numbers of an answer, and how far they may be from another's."""
    flat = answer.detach().double().cpu().flatten()
    where = torch.linspace(0, len(flat) - 1, min(KEPT, len(flat))).long()
    values = [float(f"{value:.6g}") for value in flat[where].tolist()]
    return {"values": values, "tolerance": TOLERANCE.get(precision, 5e-3)}


def other_answers(saved: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The networks, among those that both speak of, whose answers are not the same."""
    changed = []
    for name in sorted(saved.keys() & found.keys()):
        one, other = (np.array(part[name]["values"], dtype=np.float64) for part in (saved, found))
        allowed = max(part[name]["tolerance"] for part in (saved, found))
        if one.shape != other.shape or np.abs(one - other).max(initial=0.0) > allowed * np.abs(one).max(
            initial=1e-30
        ):
            changed.append(name)
    return changed
