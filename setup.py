"""Builds the extension ``fastpure._C``; everything else stands in pyproject.toml.

The extension is C++17 and needs a compiler and Python's headers, but neither torch nor a GPU. Environment:

FASTPURE_EXT    auto (default): build it if a C++ compiler and Python.h are there, otherwise install as pure
                Python and write down why. 1: their absence is an error. 0: do not build.
FASTPURE_CUDA   auto (default): compile csrc/cuda/*.cu if there are such files and nvcc is found. 1: their or
                its absence is an error. 0: do not. A failing nvcc is an error always.
FASTPURE_CUDA_ARCHS   architectures for nvcc, e.g. "80 90"; the newest one also goes in as PTX.
CXX             the C++ compiler.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = sorted(str(path) for folder in ("csrc", "csrc/host") for path in Path(folder).glob("*.cpp"))
CUDA_SOURCES = sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))
HEADERS = sorted(str(path) for pattern in ("*.h", "*.inl") for path in Path("csrc").rglob(pattern))
INCLUDES = ["csrc", "csrc/include", "csrc/host"]

# No -march and no -ffast-math: the wheel runs anywhere and chooses its instruction set when it runs.
# Contraction is off because results must have the same bits on every one of them. -fno-math-errno and
# -fno-trapping-math change no value; they let the compiler vectorise square roots, divisions and selections.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "--Werror",
    "all-warnings",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden,-ffp-contract=off",
    "-fmad=false",
]
CUDA_LIBRARIES = ["cudart_static", "dl", "rt", "pthread"]
DEFAULT_ARCHS = "80 90"


def switch(name: str) -> str:
    """An environment switch that is auto, 0 or 1."""
    value = os.environ.get(name, "auto").lower()
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


def say(text: str) -> None:
    """One line that stands out in a build log."""
    print(f"\n*** fastpure: {text} ***\n", file=sys.stderr, flush=True)


def find_compiler() -> str | None:
    """The C++ compiler command, or None; one named by CXX is taken as it is or not at all."""
    wanted = os.environ.get("CXX")
    candidates = [wanted] if wanted else [sysconfig.get_config_var("CXX"), "g++", "c++", "clang++"]
    for command in candidates:
        if command and shutil.which(command.split()[0]):
            return command
    return None


def reason_not_to_build() -> str | None:
    """Why the extension cannot be built here (no compiler, no headers, switched off); None if it can."""
    choice = switch("FASTPURE_EXT")
    if choice == "0":
        return "switched off by FASTPURE_EXT=0 when it was installed"
    reason = None
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if find_compiler() is None:
        reason = f"no C++ compiler was found (CXX={os.environ.get('CXX', '')!r}; on Debian: apt install g++)"
    elif not header.exists():
        reason = f"{header} was not found (Python's headers; on Debian: apt install python3-dev)"
    if reason and choice == "1":
        raise SystemExit(f"fastpure: FASTPURE_EXT=1, but {reason}")
    return reason


def find_nvcc() -> str | None:
    """The CUDA compiler, if this source has anything for it and it is wanted."""
    choice = switch("FASTPURE_CUDA")
    if choice == "0":
        return None
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if choice == "1" and not CUDA_SOURCES:
        raise SystemExit("fastpure: FASTPURE_CUDA=1, but this version has no CUDA sources")
    if choice == "1" and nvcc is None:
        raise SystemExit("fastpure: FASTPURE_CUDA=1, but nvcc was not found")
    if CUDA_SOURCES and nvcc is None:
        say("nvcc was not found, the extension will serve host memory only")
    return nvcc if CUDA_SOURCES else None


def compile_cuda(nvcc: str, folder: Path) -> list[str]:
    """Compile every .cu file into ``folder``, side by side; returns the object files. A failure is an error."""
    archs = cuda_archs()
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: str) -> str:
        target = str(folder / f"{Path(source).stem}.cu.o")
        command = [nvcc, *NVCC_FLAGS, *targets, *(f"-I{path}" for path in INCLUDES), "-c", source]
        subprocess.run([*command, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers:
        return list(workers.map(compile_one, CUDA_SOURCES))


def cuda_archs() -> list[str]:
    """The architectures to compile for, oldest first."""
    archs = os.environ.get("FASTPURE_CUDA_ARCHS", DEFAULT_ARCHS).split()
    if not archs or not all(arch.rstrip("af").isdigit() for arch in archs):
        raise SystemExit(f"FASTPURE_CUDA_ARCHS must be numbers such as '80 90', got {' '.join(archs)!r}")
    return sorted(archs, key=lambda arch: int(arch.rstrip("af")))


def cuda_library_folder(nvcc: str) -> str:
    """Where the toolkit of ``nvcc`` (which may be a script that calls it) keeps libcudart_static.a."""
    output = subprocess.run([nvcc, "--dryrun", "-c", "nothing.cu"], capture_output=True, text=True)
    roots = [line.partition("TOP=")[2].strip() for line in output.stderr.splitlines() if "TOP=" in line]
    for root in (*roots, Path(nvcc).resolve().parents[1], "/usr/local/cuda"):
        for folder in (Path(root) / "lib64", Path(root) / "targets" / "x86_64-linux" / "lib"):
            if (folder / "libcudart_static.a").exists():
                return str(folder.resolve())
    raise SystemExit(f"fastpure: {nvcc} is there, but libcudart_static.a of its toolkit was not found")


class BuildExtension(build_ext):
    """build_ext that finds pybind11's headers late (they are a build requirement) and can call nvcc."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        ext.include_dirs = [*INCLUDES, pybind11.get_include()]
        nvcc = find_nvcc()
        if nvcc is not None:
            ext.extra_objects = compile_cuda(nvcc, Path(self.build_temp))
            ext.library_dirs.append(cuda_library_folder(nvcc))
            ext.libraries.extend(CUDA_LIBRARIES)
            ext.define_macros += [
                ("FASTPURE_WITH_CUDA", "1"),
                ("FASTPURE_CUDA_FLAGS", f'"{" ".join(NVCC_FLAGS)}"'),
                ("FASTPURE_CUDA_ARCHS", f'"{" ".join(cuda_archs())}"'),
            ]
        super().build_extension(ext)


class BuildPackage(build_py):
    """build_py that also leaves a note about the extension, for ``fastpure doctor``."""

    def run(self) -> None:
        super().run()
        root = Path("fastpure") if self.editable_mode else Path(self.build_lib) / "fastpure"
        report = {"extension": REASON is None, "reason": REASON}
        root.mkdir(parents=True, exist_ok=True)
        (root / "_build_report.json").write_text(json.dumps(report) + "\n", encoding="utf-8")


def extensions() -> list[Extension]:
    """The extension to build, or nothing, said aloud."""
    if REASON is not None:
        say(f"installing WITHOUT the compiled extension: {REASON}")
        return []
    compiler = find_compiler()
    assert compiler is not None
    os.environ["CXX"] = compiler
    return [
        Extension(
            "fastpure._C",
            sources=SOURCES,
            depends=[*HEADERS, *CUDA_SOURCES],
            language="c++",
            extra_compile_args=FLAGS,
            libraries=["dl"],
            define_macros=[("FASTPURE_BUILD_FLAGS", f'"{" ".join(FLAGS)}"')],
        )
    ]


REASON = reason_not_to_build()

if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage})
