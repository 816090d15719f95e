"""Loads the compiled extension once and remembers why it is missing when it is."""

from __future__ import annotations

import functools
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ABI = 3
"""Must equal FASTPURE_ABI in csrc/include/fastpure/args.h; a mismatch disables the extension."""

DTYPE_CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
LAYOUT_CODES = {"contiguous": 0, "channels_last": 1}
NOISE_CODES = {"normal": 0, "uniform": 1}
BUILD_REPORT = Path(__file__).resolve().parents[1] / "_build_report.json"


@dataclass(frozen=True)
class Extension:
    """The outcome of loading: a module, or the reason why there is none."""

    module: ModuleType | None
    reason: str | None
    build: dict[str, Any] = field(default_factory=dict)


@functools.cache
def load() -> Extension:
    """Import ``fastpure._C`` (first call only; failure is remembered too)."""
    try:
        module = importlib.import_module("fastpure._C")
    except ModuleNotFoundError as error:
        if error.name != "fastpure._C":
            return Extension(None, f"fastpure._C could not be imported: {error}")
        return Extension(None, _reason_not_built())
    except ImportError as error:
        return Extension(None, f"fastpure._C is there but could not be imported: {error}")
    build = dict(module.build_info())
    if build.get("abi") != ABI:
        found = build.get("abi")
        return Extension(
            None, f"fastpure._C was built for ABI {found}, this Python code needs {ABI}: reinstall", build
        )
    return Extension(module, None, build)


@functools.cache
def _cuda_trouble(module: ModuleType) -> str | None:
    """What keeps the CUDA half from running; asked once, because it wakes the driver."""
    capabilities = list(module.device_capabilities())
    if not capabilities:
        return f"no CUDA device can be used: {module.device_trouble()}"
    architectures = module.build_info()["cuda"]["architectures"]
    oldest = min(int(name.rstrip("af")) for name in architectures.split())
    for index, capability in enumerate(capabilities):
        if capability < oldest:
            return (
                f"cuda:{index} has compute capability {capability / 10}, the extension was built for "
                f"{architectures} and newer (FASTPURE_CUDA_ARCHS={capability} when installing)"
            )
    return None


def reason_against_cuda() -> str | None:
    """Why the extension cannot serve CUDA tensors; None if it can."""
    extension = load()
    if extension.module is None:
        return extension.reason
    if not extension.build.get("cuda"):
        return (
            "the extension was built without its CUDA half (nvcc was not found or FASTPURE_CUDA=0; "
            "installing with FASTPURE_CUDA=1 insists on it)"
        )
    return _cuda_trouble(extension.module)


def _reason_not_built() -> str:
    """What the installation wrote down about leaving the extension out."""
    try:
        report = json.loads(BUILD_REPORT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "fastpure._C was not built (no build report found; install with `pip install .`)"
    reason = report.get("reason") or "the build report gives no reason"
    return f"fastpure._C was not built: {reason}"
