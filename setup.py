"""Builds the extension ``fastpure._C``; everything else stands in pyproject.toml.

The extension is C++17 and needs a compiler and Python's headers, but neither torch nor a GPU. Environment:

FASTPURE_EXT    auto (default): build it if a C++ compiler and Python.h are there, otherwise install as pure
                Python and write down why. 1: their absence is an error. 0: do not build.
FASTPURE_CUDA   auto (default): compile csrc/cuda/*.cu if there are such files and nvcc is found. 1: their or
                its absence is an error. 0: do not. A failing nvcc is an error always.
FASTPURE_CUDA_ARCHS   architectures for nvcc, e.g. "80 90"; the newest one also goes in as PTX.
CXX             the C++ compiler.
CPPFLAGS, CXXFLAGS, LDFLAGS   come before the project's own flags, which win.

What is compiled with which flags stands in csrc/build.json; csrc/ninja_build.py makes ninja compile it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))  # pip's builds do not look in this folder
import ninja_build

CUDA_SOURCES = ninja_build.sources("cuda")


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


def cuda_archs() -> list[str]:
    """The architectures to compile for, oldest first."""
    default = ninja_build.description()["cuda"]["architectures"]
    archs = os.environ.get("FASTPURE_CUDA_ARCHS", default).split()
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
    """build_ext with ninja in the place of setuptools' own compiling."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:
            # Not setuptools' temporary folder: the objects stay, and the next installation compiles what changed.
            self.build_temp = f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"

    def build_extension(self, ext: Extension) -> None:
        folder, target = Path(self.build_temp), Path(self.get_ext_fullpath(ext.name))
        if self.force:
            shutil.rmtree(folder, ignore_errors=True)
        compiler = find_compiler()
        assert compiler is not None  # otherwise there is nothing to build
        built = ninja_build.build_extension(folder, compiler, extension_module(target.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a process that has loaded it keeps its file
        shutil.copy(built, target)


def extension_module(name: str) -> ninja_build.Extension:
    """The extension as ninja is told about it: for this Python, with CUDA if that is wanted."""
    try:
        import pybind11
    except ImportError:
        raise SystemExit(
            "fastpure: pybind11, whose headers the extension needs, was not found; `pip install pybind11` brings it "
            "(pip does that itself unless it is given --no-build-isolation)"
        ) from None
    # Python's own link command after the compiler's name, e.g. "g++ -shared".
    link_flags = (sysconfig.get_config_var("LDCXXSHARED") or "c++ -shared").split()[1:]
    nvcc = find_nvcc()
    return ninja_build.Extension(
        name,
        headers={"python": sysconfig.get_paths()["include"], "pybind11": pybind11.get_include()},
        versions=f"Python {sys.version}, pybind11 {pybind11.__version__}",
        link_flags=link_flags,
        cuda=None if nvcc is None else ninja_build.Cuda(nvcc, cuda_archs(), cuda_library_folder(nvcc)),
    )


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
    return [
        Extension(
            "fastpure._C",
            sources=[*ninja_build.sources("extension"), *ninja_build.sources("host")],
            depends=[*ninja_build.headers(), *CUDA_SOURCES],
            language="c++",
        )
    ]


REASON = reason_not_to_build()

if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage})
