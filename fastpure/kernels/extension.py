"""The compiled extension: loaded once, with the reason where it is missing or cannot serve, and how it is called.

It has one entry per operation for both memories. What crosses is a device, a stream and the fields of an argument
block (csrc/include/fastpure/args.h): first the arguments of the schema, then what the kernel has to know of them.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import one_of
from .checks import memory_format_of

ABI = 5
"""Must equal FASTPURE_ABI in csrc/include/fastpure/args.h; a mismatch disables the extension."""

STATE_CODES = {torch.float32: 0, torch.float64: 1}
DTYPE_CODES = STATE_CODES | {torch.bfloat16: 2, torch.float16: 3}
ACTIVATIONS = (torch.float32, torch.bfloat16)
"""Dtypes of activations, and of the numbers per channel beside them, that the host's kernels take; they compute in
float32."""

LAYOUT_CODES = {torch.contiguous_format: 0, torch.channels_last: 1}
NOISE_CODES = {"normal": 0, "uniform": 1}
HOST = -1
"""The device that stands for host memory."""

INSTRUCTION_SETS = ("avx512_bf16", "avx512", "avx2", "baseline")
"""Those that the host's kernels are made for, best first; which of them a machine has is in the build's description."""

MAX_ISA = "FASTPURE_MAX_CPU_ISA"
"""Environment variable: the best instruction set that may be used."""

BUILD_REPORT = Path(__file__).resolve().parents[1] / "_build_report.json"


@dataclass(frozen=True)
class Extension:
    """The outcome of loading.

    Attributes:
        module: ``fastpure._C``, or None.
        reason: why there is no module; None if there is one.
        build: what the module says of how it was built; empty without one.
    """

    module: ModuleType | None
    reason: str | None
    build: dict[str, Any] = field(default_factory=dict)


@functools.cache
def load() -> Extension:
    """Import ``fastpure._C`` (first call only; failure is remembered too).

    Raises:
        ValueError: FASTPURE_MAX_CPU_ISA names no instruction set.
    """
    if MAX_ISA in os.environ:  # which the extension reads itself
        one_of(MAX_ISA, os.environ[MAX_ISA], INSTRUCTION_SETS)
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


def reason_against_cuda() -> str | None:
    """Why the extension cannot serve CUDA tensors; None if it can."""
    loaded = load()
    if loaded.module is None:
        return loaded.reason
    if not loaded.build.get("cuda"):
        return (
            "the extension was built without its CUDA half (nvcc was not found or FASTPURE_CUDA=0; "
            "installing with FASTPURE_CUDA=1 insists on it)"
        )
    return _cuda_trouble(loaded.module)


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


def unavailable_on_host(
    device_type: str, dtype: torch.dtype, dtypes: Iterable[torch.dtype] = STATE_CODES
) -> str | None:
    """Why the host's kernels cannot serve this device type and dtype, of those in ``dtypes``; None if they can."""
    if device_type != "cpu":
        return f"the back end `host` serves host memory, not {device_type}"
    return load().reason or _reason_against(dtype, dtypes)


def unavailable_for_activations(device_type: str, dtype: torch.dtype) -> str | None:
    """The same for operations on activations."""
    return unavailable_on_host(device_type, dtype, ACTIVATIONS)


def unavailable_on_cuda(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the CUDA half cannot serve this device type and (state) dtype; None if it can."""
    if device_type != "cuda":
        return f"the back end `cuda` serves CUDA devices, not {device_type}"
    return reason_against_cuda() or _reason_against(dtype, STATE_CODES)


def _reason_against(dtype: torch.dtype, dtypes: Iterable[torch.dtype]) -> str | None:
    if dtype in dtypes:
        return None
    names = " and ".join(str(one).removeprefix("torch.") for one in dtypes)
    return f"{dtype} is not supported ({names} are)"


def call(name: str, leading: Tensor, arguments: tuple[Any, ...], *rest: int) -> None:
    """Run an entry of the extension where ``leading`` lies, on the current stream or with torch's number of threads.

    Args:
        name: the entry, in csrc/module.cpp.
        leading: the tensor that decides where.
        arguments: of the operation, in the order of its schema: tensors (the extension takes their addresses),
            None and numbers.
        rest: the other fields of the argument block, in its order.
    """
    if not leading.is_cuda:
        loaded = load().module
        assert loaded is not None, "dispatch only comes here when the extension is loaded"
        getattr(loaded, name)(HOST, torch.get_num_threads(), arguments, rest)
        return
    device = leading.device.index
    if torch.cuda.current_device() == device:
        _call_on(device, name, arguments, rest)
    else:
        # torch's guard goes back without waking a device that nobody has used; the extension's own would wake it.
        with torch.cuda.device(device):
            _call_on(device, name, arguments, rest)


def _call_on(device: int, name: str, arguments: tuple[Any, ...], rest: tuple[int, ...]) -> None:
    stream = torch.cuda.current_stream(device).cuda_stream
    getattr(module_for(device), name)(device, stream, arguments, rest)


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
        with torch.cuda.device(where):
            module_for(torch.cuda.current_device() if where.index is None else where.index)


def layout_code(x: Tensor) -> int:
    """The code for the memory layout of a dense [B, C, H, W] tensor."""
    return LAYOUT_CODES[memory_format_of(x)]


def stride_of(vector: Tensor | None) -> int:
    """Elements from one sample's numbers per channel to the next: 0 where all samples share them."""
    if vector is None or vector.dim() == 1 or vector.shape[0] == 1:
        return 0
    return vector.shape[1]


def input_code(tensor: Tensor | None) -> int:
    """The code for the dtype of an input, which need not be that of the state; any where it is absent."""
    return 0 if tensor is None else DTYPE_CODES[tensor.dtype]
