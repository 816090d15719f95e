"""Compiles csrc/cuda for every architecture and reads what came out: warnings, spills, registers, wide accesses.

    python .ci/check_cuda_code.py NVCC

Needs no device. Flags, sources and architectures come from csrc/build.json. The assembler's report has registers and
spills; the widths are read from PTX always, and from machine code where cuobjdump is found (named by CUOBJDUMP,
beside nvcc, in Triton's package, or on the PATH).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = json.loads((ROOT / "csrc" / "build.json").read_text(encoding="utf-8"))
CUDA = BUILD["cuda"]
KERNEL = re.compile(r"(noise|row|vjp)_kernelI([fd])LN\w*?6AccessE([012])E")
ACCESS = ("vector", "scalar", "strided")

# Registers per thread. Programs have 256 threads, so 64 let 1024 threads reside on a multiprocessor, 128 let 512.
CEILING = {
    ("noise", "f"): 40,
    ("noise", "d"): 64,
    ("row", "f"): 64,
    ("row", "d"): 128,
    ("vjp", "f"): 64,
    ("vjp", "d"): 96,
}


def compile_to(kind: str, nvcc: str, source: Path, arch: str, out: Path) -> str:
    """Run nvcc; returns what the assembler said."""
    command = [
        nvcc,
        *CUDA["flags"],
        f"-arch=sm_{arch}",
        *(f"-I{path}" for path in BUILD["includes"]),
    ]
    command += [f"-{kind}", "-Xptxas", "-v", str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"cuda-check: FAILED, {source.name} for sm_{arch}:\n{done.stdout}{done.stderr}")
    return done.stderr


def label(match: re.Match[str]) -> str:
    kernel, dtype, access = match.groups()
    return f"{kernel}<{'float' if dtype == 'f' else 'double'}, {ACCESS[int(access)]}>"


def check_registers(report: str, arch: str) -> list[str]:
    """Print a line per kernel; returns what is wrong."""
    wrong = []
    parts = re.split(r"Compiling entry function '(\w+)'", report)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        match = KERNEL.search(name)
        if match is None:
            wrong.append(f"unknown kernel {name}")
            continue
        registers = int(re.search(r"Used (\d+) registers", text)[1])
        stack, stores, loads = (
            int(number)
            for number in re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
            ).groups()
        )
        ceiling = CEILING[match.group(1, 2)]
        limits = f"{registers:>4} registers (at most {ceiling}), spills {stores}/{loads} bytes"
        print(f"  sm_{arch}  {label(match):<24} {limits}")
        if stack or stores or loads:
            wrong.append(
                f"{label(match)} on sm_{arch} uses local memory: stack {stack}, spills {stores}/{loads}"
            )
        if registers > ceiling:
            wrong.append(
                f"{label(match)} on sm_{arch} uses {registers} registers, at most {ceiling} are allowed"
            )
    return wrong


def check_widths(code: str, split: str, load: str, store: str, what: str) -> list[str]:
    """Whether the vector kernels move 16 bytes at a time; ``split`` finds the kernels in the text."""
    wrong, found = [], 0
    parts = re.split(split, code)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        match = KERNEL.search(name)
        if match is None or ACCESS[int(match[3])] != "vector":
            continue
        found += 1
        loads, stores = len(re.findall(load, text)), len(re.findall(store, text))
        print(f"  {what:<8} {label(match):<24} 16-byte loads {loads}, stores {stores}")
        if stores == 0 or (loads == 0 and match[1] != "noise"):
            wrong.append(f"{label(match)} in {what} has no 16-byte {'stores' if stores == 0 else 'loads'}")
    return wrong if found else [f"no vector kernel was found in {what}"]


def find_cuobjdump(nvcc: str) -> str | None:
    if os.environ.get("CUOBJDUMP"):
        return os.environ["CUOBJDUMP"]
    spec = importlib.util.find_spec("triton")
    packages = (
        [Path(p) / "backends/nvidia/bin" for p in spec.submodule_search_locations or ()] if spec else []
    )
    for folder in (Path(nvcc).resolve().parent, Path("/usr/local/cuda/bin"), *packages):
        if (folder / "cuobjdump").is_file():
            return str(folder / "cuobjdump")
    return shutil.which("cuobjdump")


def main(nvcc: str) -> None:
    wrong: list[str] = []
    cuobjdump = find_cuobjdump(nvcc)
    archs = CUDA["architectures"].split()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for source in sorted(path for pattern in CUDA["sources"] for path in ROOT.glob(pattern)):
            for arch in archs:
                wrong += check_registers(compile_to("cubin", nvcc, source, arch, out), arch)
                if cuobjdump and source.stem != "launch":
                    dump = subprocess.run(
                        [cuobjdump, "-sass", str(out)], capture_output=True, text=True, check=True
                    )
                    split = r"Function : (\w+)"
                    wrong += check_widths(dump.stdout, split, r"LDG\.\S*128", r"STG\.\S*128", f"sm_{arch}")
            compile_to("ptx", nvcc, source, archs[-1], out)
            if source.stem != "launch":
                wide = r"\.global\.v(?:4\.[bfu]32|2\.[bfu]64)"
                wrong += check_widths(out.read_text(), r"\.entry (\w+)", "ld" + wide, "st" + wide, "PTX")
    if cuobjdump is None:
        print("  cuobjdump was not found: machine code was not read, PTX was")
    for line in wrong:
        print(f"cuda-check: FAILED, {line}")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
