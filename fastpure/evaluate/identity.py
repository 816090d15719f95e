"""What a run is: defence, attack, data and protocol as plain values, with SHA-256 of every weight; and back.

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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import methods
from ..data import Dataset
from ..errors import FastpureError
from ..methods import Method
from ..purify import Target, look_through
from ..purify.description import plain
from ..version import __version__
from .protocol import FIRST_DRAW, Protocol


def identity(
    defense: nn.Module | Target, dataset: Dataset, attack: Any, protocol: Protocol, block: int = 0
) -> dict[str, Any]:
    """Everything the result depends on, as values JSON can hold.

    ``block`` is how many images at most are attacked together; it counts for attacks whose images share a budget.
    """
    described = None if attack is None else plain(attack)
    if described is not None and getattr(attack, "shares", False):
        described["block"] = min(block, len(dataset))
    return {
        "defense": look_through(defense).describe(),
        "attack": described,
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
    """The parts, settings and weights of whatever is evaluated; see ``Target.describe``."""
    return look_through(defense).describe()


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


class CannotRebuild(FastpureError, ValueError):
    """A stored description does not lead back to what it describes; the message says why."""


class Head(nn.Module):
    """Stands where a method needs a classifier to be built, and is never asked."""

    def forward(self, u: Tensor) -> Tensor:
        return u.flatten(1)[:, :2]

    def features_and_logits(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """For methods that want features too."""
        return u.flatten(1), self(u)


def rebuild_method(described: Mapping[str, Any], classifier: nn.Module) -> Method:
    """The method of an identity, guided by ``classifier`` where it is guided; its table is the stored one.

    Raises:
        CannotRebuild: an unknown method, one guided by something else, or a table that came out differently.
    """
    name = described["name"]
    if name not in methods.METHODS:
        raise CannotRebuild(f"this fastpure has no method {name}")
    takes, settings = methods.spec(name), methods.METHODS[name].remembered(described["settings"])
    guided = described["guidance"] is not None or "sha256" in canonical(described.get("procedure"))
    if takes.network is not None and (takes.required or guided):
        settings[takes.network] = classifier
    try:
        method = methods.make(name, **settings)
    except (TypeError, ValueError) as error:
        raise CannotRebuild(f"{name} cannot be made from its stored settings: {error}") from error
    if method.steps.digest != described["steps"]:
        raise CannotRebuild(f"{name} has another step table than in the run")
    return method
