"""What the compiler made of a GPU kernel: registers, spills, accesses and occupancy, read from its machine code.

Works on any cubin, Triton's or nvcc's, and needs no device: ``cuobjdump`` comes with CUDA and with Triton.
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARP = 32
_MNEMONIC = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)")
_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_RESOURCES = re.compile(r"Function (\S+):\s*\n\s*(.*)")


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has: registers, warps, programs, bytes of shared memory (1 KB per program is taken)."""

    registers: int
    warps: int
    programs: int
    shared: int


LIMITS = {80: Limits(65536, 64, 32, 164 * 1024), 90: Limits(65536, 64, 32, 228 * 1024)}


@dataclass(frozen=True)
class KernelCode:
    """One kernel of a cubin.

    Attributes:
        name: as the linker sees it.
        registers: per thread.
        stack: bytes per thread.
        shared: static bytes per program.
        instructions: in the machine code.
        spills: loads and stores of local memory.
        atomics: atomic operations on global memory.
        loads, stores: bytes per access -> instructions, global memory.
    """

    name: str
    registers: int
    stack: int
    shared: int
    instructions: int
    spills: int
    atomics: int
    loads: dict[int, int]
    stores: dict[int, int]

    def figures(self) -> dict[str, Any]:
        """What a table says of it, in values that JSON can hold."""
        return {
            "registers": self.registers,
            "spills": self.spills,
            "atomics": self.atomics,
            "loads": {str(width): count for width, count in self.loads.items()},
            "stores": {str(width): count for width, count in self.stores.items()},
        }


def read_cubin(cubin: bytes | Path) -> list[KernelCode]:
    """Every kernel in a cubin.

    Raises:
        FileNotFoundError: there is no cuobjdump here.
    """
    if isinstance(cubin, bytes):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            return read_cubin(Path(file.name))
    resources = dict(_RESOURCES.findall(_dump("--dump-resource-usage", cubin)))
    parts = _FUNCTION.split(_dump("--dump-sass", cubin))
    return [_kernel(name, body, resources[name]) for name, body in zip(parts[1::2], parts[2::2], strict=True)]


def occupancy(architecture: int, registers: int, shared: int, warps: int) -> int:
    """Programs of ``warps`` warps that fit on one multiprocessor at a time."""
    limits = LIMITS[architecture]
    per_warp = -(-max(registers, 1) * WARP // 256) * 256  # registers are handed out in units of 256
    by_registers = limits.registers // per_warp // warps
    by_shared = limits.shared // (-(-shared // 128) * 128 + 1024)
    return min(by_registers, limits.warps // warps, limits.programs, by_shared)


@functools.cache
def tool(name: str) -> str:
    """Path of a CUDA binary utility: on the PATH, in /usr/local/cuda, or in Triton's package."""
    spec = importlib.util.find_spec("triton")
    folders = (
        [Path(root) / "backends/nvidia/bin" for root in (spec.submodule_search_locations or [])]
        if spec
        else []
    )
    for folder in (*folders, Path("/usr/local/cuda/bin")):
        if (folder / name).is_file():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(
            f"`{name}` is neither in Triton's package nor in /usr/local/cuda/bin nor on the PATH"
        )
    return found


def _dump(option: str, cubin: Path) -> str:
    done = subprocess.run([tool("cuobjdump"), option, str(cubin)], capture_output=True, text=True, check=True)
    return done.stdout


def _kernel(name: str, body: str, resources: str) -> KernelCode:
    used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", resources)}
    mnemonics = _MNEMONIC.findall(body)
    kinds = collections.Counter(word.split(".")[0] for word in mnemonics)
    return KernelCode(
        name,
        used["REG"],
        used["STACK"],
        used["SHARED"],
        len(mnemonics) - kinds["NOP"],
        kinds["LDL"] + kinds["STL"],
        kinds["ATOM"] + kinds["ATOMG"] + kinds["RED"] + kinds["REDG"],
        _widths(word for word in mnemonics if word.startswith("LDG")),
        _widths(word for word in mnemonics if word.startswith("STG")),
    )


def _widths(mnemonics: Iterable[str]) -> dict[int, int]:
    """Bytes per access -> count, for words such as LDG.E.128 or STG.E.U16."""
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    widths = (next((sizes[part] for part in word.split(".") if part in sizes), 4) for word in mnemonics)
    return dict(sorted(collections.Counter(widths).items(), reverse=True))
