"""Machine code of the kernels in csrc/cuda, as rows for bench/machine_code.py."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.cubin import KernelCode, read_cubin

ROOT = Path(__file__).resolve().parents[1]
BUILD = json.loads((ROOT / "csrc" / "build.json").read_text(encoding="utf-8"))
FLAGS = (*BUILD["cuda"]["flags"], *(f"-I{path}" for path in BUILD["includes"]))


def sources() -> list[Path]:
    """The CUDA sources of this version."""
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def cuda_rows(architecture: int) -> list[dict[str, Any]]:
    """A row per kernel (and instance of a template) of every file in csrc/cuda; none without nvcc."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    rows = []
    for source in sources() if nvcc else ():
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            command = [str(nvcc), "-cubin", f"-arch=sm_{architecture}", *FLAGS, str(source), "-o", str(cubin)]
            subprocess.run(command, check=True, cwd=ROOT)
            rows += [_row(architecture, source.name, code) for code in read_cubin(cubin)]
    return rows


def fingerprint() -> str:
    """A digest of the device sources and the headers they share with the host."""
    folders = (ROOT / "csrc" / "cuda", ROOT / "csrc" / "include")
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _row(architecture: int, source: str, code: KernelCode) -> dict[str, Any]:
    return {
        "kernel": _readable(code.name),
        "site": f"csrc/cuda/{source}",
        "sm": architecture,
        "shared": code.shared,
        **code.figures(),
    }


def _readable(name: str) -> str:
    """``row_kernel<float, 0>`` for a mangled name; the name itself where there is no demangler."""
    demangler = shutil.which("c++filt")
    if demangler is None:
        return name
    plain = subprocess.run([demangler, name], capture_output=True, text=True, check=True).stdout.strip()
    plain = plain.replace("(anonymous namespace)::", "")
    plain = re.sub(r"\((?:\w+::)*\w+\)(?=-?\d)", "", plain)  # the type in front of an enumerator
    found = re.search(r"(\w+(?:<[^()]*>)?)\(", plain)
    return found[1] if found else plain
