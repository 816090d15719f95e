"""Writes a build.ninja from csrc/build.json and runs ninja, which compiles what has changed, side by side.

setup.py calls it for the extension. As a program it builds and runs the sanitizer programs, without Python's headers:

    CXX=g++ python csrc/ninja_build.py sanitize

Paths in the file are relative to the root of the source tree, where ninja runs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

RULES = """\
rule cxx
  command = $cxx $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = C++ $in
rule nvcc
  command = $nvcc $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = CUDA $in
rule link
  command = $cxx $flags $in -o $out $libraries
  description = link $out
"""


def description() -> dict[str, Any]:
    """csrc/build.json."""
    return json.loads((ROOT / "csrc" / "build.json").read_text(encoding="utf-8"))


def sources(part: str) -> list[str]:
    """The sources of one part of build.json ("host", "extension", "cuda", "sanitize"), relative to the root."""
    patterns = description()[part]["sources"]
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def headers() -> list[str]:
    """Everything under csrc that is included by something else."""
    return sorted(
        str(path.relative_to(ROOT)) for end in ("*.h", "*.inl") for path in (ROOT / "csrc").rglob(end)
    )


@dataclass(frozen=True)
class Cuda:
    """The CUDA half.

    Attributes:
        nvcc: the compiler, or a script that calls it.
        architectures: numbers such as "90" or "90a", oldest first.
        library_folder: where libcudart_static.a lies.
    """

    nvcc: str
    architectures: list[str]
    library_folder: str

    def targets(self) -> list[str]:
        """nvcc's options for machine code for each architecture and PTX for the newest."""
        newest = self.architectures[-1]
        pairs = [*((arch, f"sm_{arch}") for arch in self.architectures), (newest, f"compute_{newest}")]
        return [f"-gencode=arch=compute_{arch},code={code}" for arch, code in pairs]


@dataclass(frozen=True)
class Extension:
    """The Python extension module.

    Attributes:
        name: its file name; it is linked in the build folder.
        headers: Python's and pybind11's include folders by the names they get in the build folder.
        versions: what these headers are; others are a reason to compile again.
        link_flags: what this Python links extension modules with.
        cuda: the CUDA half, if it is wanted.
    """

    name: str
    headers: dict[str, str]
    versions: str
    link_flags: list[str] = field(default_factory=lambda: ["-shared"])
    cuda: Cuda | None = None

    def macros(self) -> list[str]:
        """What ``build_info()`` tells about the build."""
        build = description()
        said = {"FASTPURE_BUILD_FLAGS": [*build["flags"], *build["extension"]["flags"]]}
        if self.cuda is not None:
            said["FASTPURE_CUDA_FLAGS"] = build["cuda"]["flags"]
            said["FASTPURE_CUDA_ARCHS"] = self.cuda.architectures
        macros = [f'-D{name}="{" ".join(words)}"' for name, words in said.items()]
        return [*macros, *(["-DFASTPURE_WITH_CUDA=1"] if self.cuda else [])]


class NinjaFile:
    """The text of a build.ninja. Objects and programs go to ``folder``; each depends on the file ``toolchain``."""

    def __init__(self, folder: Path, cxx: str, nvcc: str | None = None) -> None:
        self.folder = folder
        self.build = description()
        self.includes = [f"-I{path}" for path in self.build["includes"]]
        variables = {"ninja_required_version": "1.5", "builddir": str(folder), "cxx": cxx}
        if nvcc is not None:
            variables["nvcc"] = shlex.quote(nvcc)
        self.parts = ["# Written by csrc/ninja_build.py from csrc/build.json; changes here are lost.\n"]
        self.parts += [f"{name} = {value.replace('$', '$$')}\n" for name, value in variables.items()]
        self.parts.append(RULES)

    def edge(self, rule: str, output: Path, inputs: Iterable[str | Path], **words: list[str]) -> Path:
        """``output`` is made by ``rule`` from ``inputs``; ``words`` are the rule's variables. Returns ``output``."""
        made_from = " ".join(_path(name) for name in inputs)
        self.parts.append(f"build {_path(output)}: {rule} {made_from} | {_path(self.folder / 'toolchain')}\n")
        self.parts += [f"  {name} = {_shell(value)}\n" for name, value in words.items()]
        return output

    def objects(self, names: list[str], flags: list[str], folder: str, rule: str = "cxx") -> list[Path]:
        """An object in ``folder`` per source."""
        return [
            self.edge(rule, self.folder / folder / f"{name}.o", [name], flags=[*flags, *self.includes])
            for name in names
        ]

    def group(self, name: str, members: Iterable[Path]) -> None:
        """``ninja name`` builds ``members``."""
        self.parts.append(f"build {name}: phony {' '.join(map(_path, members))}\n")

    def add_extension(self, extension: Extension) -> Path:
        """The group "extension"; returns the file that is linked."""
        own, cuda = self.build["extension"], extension.cuda
        flags = [*_environment("CPPFLAGS", "CXXFLAGS"), *self.build["flags"], *own["flags"]]
        # As system folders, so that depfiles leave them out: in pip's isolated builds pybind11 is new every time.
        # The file "toolchain" stands for them.
        foreign = [word for name in extension.headers for word in ("-isystem", str(self.folder / name))]
        objects = self.objects(sources("host"), flags, "objects")
        objects += self.objects(sources("extension"), [*flags, *extension.macros(), *foreign], "objects")
        libraries = [f"-l{name}" for name in own["libraries"]]
        if cuda is not None:
            cuda_flags = [*self.build["cuda"]["flags"], *cuda.targets()]
            objects += self.objects(sources("cuda"), cuda_flags, "objects", "nvcc")
            libraries = [
                f"-L{cuda.library_folder}",
                *(f"-l{name}" for name in self.build["cuda"]["libraries"]),
            ]
        link_flags = [*extension.link_flags, *own["link"], *_environment("LDFLAGS")]
        output = self.folder / extension.name
        self.edge("link", output, objects, flags=link_flags, libraries=libraries)
        self.group("extension", [output])
        return output

    def add_sanitizers(self) -> list[Path]:
        """The group "sanitize"; returns its programs."""
        own = self.build["sanitize"]
        flags = [*self.build["flags"], *own["flags"]]
        libraries = [*own["link"], *(f"-l{name}" for name in own["libraries"])]
        host = self.objects(sources("host"), flags, "sanitize")
        programs = [
            self.edge(
                "link",
                self.folder / "sanitize" / Path(name).stem,
                [*self.objects([name], flags, "sanitize"), *host],
                flags=own["flags"],
                libraries=libraries,
            )
            for name in sources("sanitize")
        ]
        self.group("sanitize", programs)
        return programs

    def text(self, default: str) -> str:
        """The whole file; ``default`` is what ninja builds when it is told nothing."""
        return "".join([*self.parts, f"default {default}\n"])


def build_extension(folder: Path, cxx: str, extension: Extension) -> Path:
    """Compile and link what has changed; returns the extension's file in ``folder``."""
    cuda = extension.cuda
    file = NinjaFile(folder, cxx, cuda.nvcc if cuda else None)
    output = file.add_extension(extension)
    file.add_sanitizers()
    for name, target in extension.headers.items():
        _link(ROOT / folder / name, target)
    compilers = [shlex.split(cxx), *([[cuda.nvcc]] if cuda else [])]
    _write_if_changed(ROOT / folder / "toolchain", extension.versions + "\n" + _versions(compilers))
    _write_if_changed(ROOT / folder / "build.ninja", file.text("extension"))
    run_ninja(folder, "extension")
    return ROOT / output


def build_sanitizers(folder: Path, cxx: str) -> list[Path]:
    """Compile and link the sanitizer programs; returns them."""
    file = NinjaFile(folder, cxx)
    programs = file.add_sanitizers()
    _write_if_changed(ROOT / folder / "toolchain", _versions([shlex.split(cxx)]))
    _write_if_changed(ROOT / folder / "build.ninja", file.text("sanitize"))
    run_ninja(folder, "sanitize")
    return [ROOT / program for program in programs]


def find_ninja() -> str:
    """The ninja of this Python's environment, or the one on the PATH.

    Raises:
        SystemExit: there is none.
    """
    beside = shutil.which("ninja", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("ninja")
    if found is None:
        raise SystemExit(
            "fastpure: ninja, which runs the compilers, was not found; `pip install ninja` brings it "
            "(pip does that itself unless it is given --no-build-isolation)"
        )
    return found


def run_ninja(folder: Path, target: str) -> None:
    """Run ninja in the root of the source tree.

    Raises:
        SystemExit: something did not compile; the compiler's message has been printed.
    """
    command = [find_ninja(), "-f", str(folder / "build.ninja"), target]
    sys.stdout.flush()
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise SystemExit(
            f"fastpure: building failed, see the compiler's message above; `{shlex.join(command)}` in {ROOT} repeats it"
        )


def _environment(*names: str) -> list[str]:
    """What a packager asks for, before our own flags, which win."""
    return [word for name in names for word in shlex.split(os.environ.get(name, ""))]


def _path(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _shell(words: Iterable[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _link(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _write_if_changed(path: Path, text: str) -> None:
    # Whatever is newer than an object is a reason to compile it again.
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _versions(commands: list[list[str]]) -> str:
    """What compilers say of themselves: another one compiles everything again, though its name is the same."""
    said = [
        subprocess.run([*words, "--version"], capture_output=True, text=True).stdout for words in commands
    ]
    return "\n".join(said)


def main(words: list[str]) -> None:
    if words != ["sanitize"]:
        raise SystemExit(f"usage: python csrc/ninja_build.py sanitize, got {' '.join(words)!r}")
    for program in build_sanitizers(Path("build") / "sanitize", os.environ.get("CXX") or "g++"):
        if subprocess.run([str(program)]).returncode != 0:
            raise SystemExit(f"fastpure: {program.name} failed, see above")


if __name__ == "__main__":
    main(sys.argv[1:])
