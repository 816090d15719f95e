"""The compiled extension: loaded once, with the reason where it is missing, and what it needs to know of a tensor."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .checks import memory_format_of

ABI = 3
"""Must equal FASTPURE_ABI in csrc/include/fastpure/args.h; a mismatch disables the extension."""

DTYPE_CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
LAYOUT_CODES = {"contiguous": 0, "channels_last": 1}
NOISE_CODES = {"normal": 0, "uniform": 1}
STATE_CODES = {torch.float32: DTYPE_CODES["float32"], torch.float64: DTYPE_CODES["float64"]}
INPUT_CODES = STATE_CODES | {
    torch.bfloat16: DTYPE_CODES["bfloat16"],
    torch.float16: DTYPE_CODES["float16"],
}
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


def unavailable(dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve CUDA tensors of this (state) dtype; None if it can."""
    reason = reason_against_cuda()
    if reason is not None:
        return reason
    if dtype not in STATE_CODES:
        return f"{dtype} is not supported (float32 and float64 are)"
    return None


def by_device(
    leading: int, on_host: Callable[..., None], on_cuda: Callable[..., None]
) -> Callable[..., None]:
    """An implementation that goes by the device of its argument number ``leading``."""

    def run(*args: Any) -> None:
        (on_cuda if args[leading].is_cuda else on_host)(*args)

    return run


def address(tensor: Tensor | None) -> int:
    """Where the tensor begins in memory; 0 for one that is absent."""
    return 0 if tensor is None else tensor.data_ptr()


def layout_code(x: Tensor) -> int:
    """The extension's code for the memory layout of a dense [B, C, H, W] tensor."""
    name = "channels_last" if memory_format_of(x) is torch.channels_last else "contiguous"
    return LAYOUT_CODES[name]


def input_code(tensor: Tensor | None) -> int:
    """The extension's code for the dtype of an input, which need not be that of the state."""
    return INPUT_CODES[torch.float32 if tensor is None else tensor.dtype]


def target(tensor: Tensor) -> tuple[int, int]:
    """(device index, address of the caller's stream there), to launch on."""
    index = tensor.device.index
    return index, torch.cuda.current_stream(index).cuda_stream


@functools.cache
def module_for(device_index: int) -> ModuleType:
    """The extension, with all its kernels loaded on that device (once; loading must not fall into a capture).

    Raises:
        RuntimeError: the device cannot run them; the message has CUDA's words.
    """
    module = load().module
    assert module is not None, "dispatch only comes here when the extension is loaded"
    module.cuda_preload(device_index)
    return module


def preload(device: torch.device | str | int = "cuda") -> None:
    """Load the extension's kernels on a CUDA device; call it before the first capture on that device.

    The first operation on a device does the same. Where the extension has no CUDA half nothing happens.

    Raises:
        RuntimeError: the device cannot run them; the message has CUDA's words.
    """
    if reason_against_cuda() is None:
        where = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        module_for(torch.cuda.current_device() if where.index is None else where.index)
