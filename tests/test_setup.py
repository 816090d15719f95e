"""What the installation does where something is missing: say it, or refuse."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1] / "setup.py"
pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="the source tree is not here (testing a wheel)")


@pytest.fixture
def setup(monkeypatch):
    """setup.py as a module, in its folder, with no switches set."""
    pytest.importorskip("setuptools")
    for name in ("FASTPURE_EXT", "FASTPURE_CUDA", "FASTPURE_CUDA_ARCHS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(SETUP.parent)
    spec = importlib.util.spec_from_file_location("fastpure_setup", SETUP)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fastpure_setup", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def with_headers(monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})


def test_missing_compiler_is_a_reason(setup, with_headers, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert "no C++ compiler" in setup.reason_not_to_build()
    monkeypatch.setenv("FASTPURE_EXT", "1")
    with pytest.raises(SystemExit, match=r"FASTPURE_EXT=1, but no C\+\+ compiler"):
        setup.reason_not_to_build()


def test_missing_headers_are_a_reason(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h was not found" in setup.reason_not_to_build()


def test_nothing_missing_is_no_reason(setup, with_headers, monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    assert setup.reason_not_to_build() is None


def test_switches(setup, monkeypatch):
    monkeypatch.setenv("FASTPURE_EXT", "0")
    assert "FASTPURE_EXT=0" in setup.reason_not_to_build()
    monkeypatch.setenv("FASTPURE_EXT", "yes")
    with pytest.raises(SystemExit, match="FASTPURE_EXT must be auto, 0 or 1, got 'yes'"):
        setup.reason_not_to_build()


def test_without_the_extension_nothing_is_compiled_and_it_is_said(setup, monkeypatch, capsys):
    monkeypatch.setattr(setup, "REASON", "no C++ compiler was found")
    assert setup.extensions() == []
    assert (
        "*** fastpure: installing WITHOUT the compiled extension: no C++ compiler" in capsys.readouterr().err
    )


def test_architectures_are_numbers_in_order(setup, monkeypatch):
    assert setup.cuda_archs() == ["80", "90"]
    monkeypatch.setenv("FASTPURE_CUDA_ARCHS", "120 90a 80")
    assert setup.cuda_archs() == ["80", "90a", "120"]
    for wrong in ("sm_90", " "):
        monkeypatch.setenv("FASTPURE_CUDA_ARCHS", wrong)
        with pytest.raises(SystemExit, match="FASTPURE_CUDA_ARCHS must be numbers"):
            setup.cuda_archs()


def test_the_toolkit_is_found_through_a_script(setup, tmp_path):
    toolkit = tmp_path / "toolkit" / "lib64"
    toolkit.mkdir(parents=True)
    (toolkit / "libcudart_static.a").touch()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f'#!/bin/sh\necho "#$ TOP={toolkit.parent}" >&2\n')
    nvcc.chmod(0o755)
    assert setup.cuda_library_folder(str(nvcc)) == str(toolkit)


def test_cuda_switches(setup, monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert setup.find_nvcc() is None
    monkeypatch.setenv("FASTPURE_CUDA", "1")
    with pytest.raises(SystemExit, match="FASTPURE_CUDA=1, but nvcc was not found"):
        setup.find_nvcc()
    monkeypatch.setattr(setup, "CUDA_SOURCES", [])
    with pytest.raises(SystemExit, match="no CUDA sources"):
        setup.find_nvcc()
    monkeypatch.setenv("FASTPURE_CUDA", "0")
    assert setup.find_nvcc() is None


def fake(path: Path, script: str) -> str:
    """An executable that runs a shell script."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def ninja_file(setup, cuda=None) -> str:
    file = setup.ninja_build.NinjaFile(Path("build/x"), "g++ -pipe", "/opt/cuda tools/nvcc" if cuda else None)
    file.add_extension(
        setup.ninja_build.Extension("_C.so", {"pybind11": "/somewhere"}, "versions", ["-shared"], cuda)
    )
    file.add_sanitizers()
    return file.text("extension")


def edge(text: str, output: str) -> str:
    """The statement that makes ``output``, and its variables."""
    (found,) = re.findall(rf"^build \S*{re.escape(output)}: .*\n(?:  .*\n)*", text, re.MULTILINE)
    return found


def test_every_source_is_compiled(setup):
    cuda = setup.ninja_build.Cuda("nvcc", ["80", "90"], "/lib")
    text = ninja_file(setup, cuda)
    found = [path for end in ("*.cpp", "*.cu") for path in (SETUP.parent / "csrc").rglob(end)]
    assert len(found) > 10
    for path in found:
        assert f" {path.relative_to(SETUP.parent)} |" in text
    assert "csrc/cuda/quad.h" in setup.ninja_build.headers()


def test_the_ninja_file_says_what_build_json_says(setup):
    build = json.loads((SETUP.parent / "csrc" / "build.json").read_text())
    text = ninja_file(setup, setup.ninja_build.Cuda("/opt/cuda tools/nvcc", ["80", "90a"], "/toolkit/lib64"))
    assert "cxx = g++ -pipe\n" in text
    assert "nvcc = '/opt/cuda tools/nvcc'\n" in text
    for output, part in (
        ("objects/csrc/host/kernels.cpp.o", "extension"),
        ("/csrc/tests/host_check.cpp.o", "sanitize"),
    ):
        words = edge(text, output).split()
        assert {*build["flags"], *build[part]["flags"], *(f"-I{path}" for path in build["includes"])} <= {
            *words
        }
    device = edge(text, "row.cu.o")
    for word in (*build["cuda"]["flags"], "code=sm_80", "code=sm_90a", "arch=compute_90a,code=compute_90a"):
        assert word in device
    assert "FASTPURE_WITH_CUDA" in edge(text, "module.cpp.o")
    assert "pybind11" not in edge(text, "objects/csrc/host/kernels.cpp.o"), "only the binding sees pybind11"
    linked = edge(text, "_C.so")
    assert "row.cu.o" in linked
    assert "-L/toolkit/lib64 -lcudart_static" in linked
    assert "cu.o" not in ninja_file(setup)


def test_names_with_blanks_and_dollars_reach_the_compiler(setup, tmp_path):
    folder = tmp_path / "a b$c"
    folder.mkdir()
    source = folder / "one.cpp"
    source.write_text("const char* word = WORD;\n")
    file = setup.ninja_build.NinjaFile(folder, "g++")
    file.objects([str(source)], ['-DWORD="x $y"'], "objects")
    assert "a$ b$$c" in file.text("objects")
    assert "'-DWORD=\"x $$y\"'" in file.text("objects")


def test_flags_stand_in_build_json_only():
    flag = re.compile(
        r"-std=c\+\+|-ffp-contract|-fmad|-fsanitize|-fno-|-O[23]\b|-lcudart|cudart_static\b(?!\.a)"
    )
    places = ["setup.py", "Makefile", "csrc/ninja_build.py", "bench/gpu_figures.py", "bench/cuda_code.py"]
    places += [f".ci/{name}" for name in ("run", "check_cuda_code.py", "cuda_check", "wheel_check")]
    found = {
        place: flag.findall((SETUP.parent / place).read_text())
        for place in places
        if (SETUP.parent / place).exists()
    }
    assert len(found) >= 3
    assert not {place: flags for place, flags in found.items() if flags}


@pytest.mark.parametrize("missing", ["ninja", "pybind11"])
def test_a_missing_build_requirement_is_one_sentence(setup, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, "pybind11", None)
    monkeypatch.setattr(setup.ninja_build.shutil, "which", lambda *_, **__: None)
    call = {"ninja": setup.ninja_build.find_ninja, "pybind11": lambda: setup.extension_module("_C.so")}[
        missing
    ]
    with pytest.raises(SystemExit, match=f"fastpure: {missing}, .* was not found; `pip install {missing}`"):
        call()


def tree(tmp_path: Path) -> Path:
    """A copy of what the extension is built from, with its build requirements at hand."""
    for name in ("ninja", "pybind11"):
        pytest.importorskip(name, reason=f"{name} is a build requirement that pip keeps to itself")
    root = tmp_path / "tree"
    shutil.copytree(SETUP.parent / "csrc", root / "csrc", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "fastpure").mkdir()
    shutil.copy(SETUP, root)
    return root


def build(root: Path, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Build in place, host memory only; what was said, and which sources were compiled."""
    switches = {"FASTPURE_EXT": "1", "FASTPURE_CUDA": "0", **environment}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=root,
        env={**os.environ, **switches},
        capture_output=True,
        text=True,
    )
    compiled = re.findall(r"\] (?:C\+\+|CUDA) (\S+)", done.stdout)
    return done, sorted(Path(name).name for name in compiled)


@pytest.mark.slow
def test_only_what_changed_is_compiled(tmp_path):
    root = tree(tmp_path)
    first, compiled = build(root)
    assert first.returncode == 0, first.stdout + first.stderr
    assert {"kernels.cpp", "module.cpp", "isa_avx2.cpp"} <= set(compiled)
    (extension,) = (root / "fastpure").glob("_C*.so")
    assert extension.stat().st_size > 10_000
    assert build(root)[1] == [], "building twice compiles nothing"
    source = root / "csrc" / "host" / "threads.cpp"
    source.touch()
    assert build(root)[1] == ["threads.cpp"]
    header = root / "csrc" / "host" / "threads.h"
    header.touch()
    compiled = build(root)[1]
    assert {"launch.cpp", "threads.cpp"} <= set(compiled), "what includes it"
    assert "isa_avx2.cpp" not in compiled, "and nothing else"

    source.write_text(source.read_text() + "\nno_such_type mistake;\n")
    broken, _ = build(root)
    assert broken.returncode != 0
    assert "no_such_type" in broken.stdout + broken.stderr, "the compiler's message is shown"
    assert "fastpure: building failed" in broken.stderr


@pytest.mark.slow
def test_nvcc_gets_every_architecture_and_its_failure_is_an_error(setup, tmp_path, monkeypatch):
    """With programs in the place of the compilers: they write down what they are told and make empty files."""
    root = tree(tmp_path)
    monkeypatch.setattr(setup.ninja_build, "ROOT", root)
    record = f'echo "$@" >> {tmp_path}/arguments'
    make = 'while [ "$1" != -o ] && [ $# -gt 0 ]; do shift; done; test $# = 0 || : > "$2"'
    nvcc = fake(tmp_path / "nvcc", f"{record}; {make}; test ! -e {tmp_path}/broken")
    cxx = fake(tmp_path / "cxx", make)
    module = setup.ninja_build.Extension(
        "_C.so", {"python": "/p"}, "v", ["-shared"], setup.ninja_build.Cuda(nvcc, ["80", "90"], "/l")
    )
    assert setup.ninja_build.build_extension(Path("build/x"), cxx, module) == root / "build/x/_C.so"
    said = (tmp_path / "arguments").read_text()
    for word in ("code=sm_80", "code=sm_90", "code=compute_90", "-fmad=false", "csrc/cuda/row.cu"):
        assert word in said
    (tmp_path / "broken").touch()
    os.utime(root / "csrc" / "cuda" / "row.cu", (4e9, 4e9))
    with pytest.raises(SystemExit, match="building failed"):
        setup.ninja_build.build_extension(Path("build/x"), cxx, module)


def test_objects_of_an_editable_installation_stay(setup):
    """setuptools gives it a temporary folder, which would compile everything every time."""
    from setuptools import Distribution

    command = setup.BuildExtension(Distribution())
    command.editable_mode, command.build_temp = True, "/tmp/elsewhere"
    command.finalize_options()
    assert command.build_temp.startswith("build/temp.")
