"""Triton, imported when first needed; remembers why it cannot be used when it cannot.

Kernels are written with ``tl`` functions only (no libdevice, no inline assembly), so that Triton's interpreter
runs them on the CPU. The interpreter is chosen by ``TRITON_INTERPRET=1`` before Triton is first imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastpure.kernels.triton_configs import Tile

OLDEST = (3, 6)
"""The oldest Triton these kernels are compiled with."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)
ARCHITECTURES = (80, 90)
"""The GPU generations the configuration table was made for."""

OPTIONS = {"enable_fp_fusion": False}
"""Compiler options of every kernel: sums and products stay as they are written."""


@dataclass(frozen=True)
class Support:
    """The outcome of loading: the module, or the reason why there is none; and whether it interprets."""

    module: ModuleType | None
    reason: str | None
    interpreted: bool = False


@functools.cache
def load() -> Support:
    """Import Triton (first call only; failure is remembered too)."""
    try:
        module = importlib.import_module("triton")
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return Support(None, "Triton is not installed (pip install triton)")
        return Support(None, f"Triton is installed but cannot be imported: {error}")
    except Exception as error:  # a broken installation raises anything, and must not break the reference
        return Support(None, f"Triton is installed but cannot be imported: {type(error).__name__}: {error}")
    version = getattr(module, "__version__", "0.0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        wanted = ".".join(str(part) for part in OLDEST)
        return Support(None, f"Triton {version} is too old (these kernels need {wanted})")
    return Support(module, None, os.environ.get("TRITON_INTERPRET") == "1")


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run on this device type and dtype; None if they can."""
    support = load()
    if support.module is None:
        return support.reason
    if dtype not in DTYPES:
        return f"{dtype} is not supported by the Triton kernels (float32, bfloat16 and float16 are)"
    if support.interpreted:
        return None if device_type == "cpu" else "Triton is interpreting on the CPU (TRITON_INTERPRET=1)"
    if device_type != "cuda":
        return f"Triton kernels need a CUDA device, not {device_type} (TRITON_INTERPRET=1 runs them slowly)"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_CAPABILITY:
        found = ".".join(str(part) for part in capability)
        return f"the device has compute capability {found}, Triton kernels here need 8.0"
    return None


@functools.cache
def architecture(device: torch.device) -> int:
    """The generation whose configurations ``device`` uses: 80 or 90, the newest for anything else."""
    if device.type != "cuda":
        return ARCHITECTURES[-1]
    return 90 if torch.cuda.get_device_capability(device) >= (9, 0) else 80


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel and everything about its call but the tensors: made once per shape, also for a GPU that is not there.

    Attributes:
        kernel: the ``triton.jit`` function.
        programs: how many programs run per sample.
        pointers: the names of its tensor arguments.
        constants: argument name -> compile-time constant.
        tile: what one program works on, and with how many warps.
        reads, writes: how many activation tiles a program reads and writes.
        access: bytes of the widest access to activations that the layout allows.
    """

    kernel: Any
    programs: int
    pointers: tuple[str, ...]
    constants: Mapping[str, Any]
    tile: Tile
    reads: float = 0
    writes: float = 0
    access: int = 0


def run(
    launches: Iterable[Launch], samples: int, tensors: Mapping[str, Tensor], device: torch.device
) -> None:
    """Run kernels in order, on the current stream of ``device``; an absent tensor is absent from ``tensors``."""
    context: Any = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with context:
        for launch in launches:
            arguments = {name: tensors.get(name) for name in launch.pointers}
            launch.kernel[(samples * launch.programs,)](
                **arguments, **launch.constants, num_warps=launch.tile.warps, **OPTIONS
            )
