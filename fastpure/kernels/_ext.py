"""Loads the compiled extension once and remembers why it is missing when it is."""

from __future__ import annotations

import functools
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ABI = 1
"""Must equal FASTPURE_ABI in csrc/include/fastpure/args.h; a mismatch disables the extension."""

DTYPE_CODES = {"float32": 0, "float64": 1}
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


def _reason_not_built() -> str:
    """What the installation wrote down about leaving the extension out."""
    try:
        report = json.loads(BUILD_REPORT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "fastpure._C was not built (no build report found; install with `pip install .`)"
    reason = report.get("reason") or "the build report gives no reason"
    return f"fastpure._C was not built: {reason}"
