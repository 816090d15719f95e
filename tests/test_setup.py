"""What the installation does where something is missing: say it, or refuse."""

from __future__ import annotations

import importlib.util
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


def test_every_host_source_is_built(setup):
    found = {str(path.relative_to(SETUP.parent)) for path in (SETUP.parent / "csrc").rglob("*.cpp")}
    assert set(setup.SOURCES) == {path for path in found if not path.startswith("csrc/tests")}


def test_every_cuda_source_is_built(setup):
    folder = SETUP.parent / "csrc" / "cuda"
    assert (
        {Path(path).name for path in setup.CUDA_SOURCES}
        == {path.name for path in folder.glob("*.cu")}
        != set()
    )
    assert "csrc/cuda/quad.h" in setup.HEADERS


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
    monkeypatch.setattr(setup, "CUDA_SOURCES", ["csrc/cuda/row.cu"])
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


def test_nvcc_gets_every_architecture_and_its_failure_is_an_error(setup, monkeypatch, tmp_path):
    record = tmp_path / "arguments"
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f'#!/bin/sh\necho "$@" > {record}\ntest ! -e {tmp_path}/broken\n')
    nvcc.chmod(0o755)
    monkeypatch.setattr(setup, "CUDA_SOURCES", ["csrc/cuda/row.cu"])
    monkeypatch.setenv("FASTPURE_CUDA_ARCHS", "80 90")
    assert setup.compile_cuda(str(nvcc), tmp_path / "out") == [str(tmp_path / "out" / "row.cu.o")]
    arguments = record.read_text()
    for target in ("code=sm_80", "code=sm_90", "code=compute_90", "-fmad=false"):
        assert target in arguments
    (tmp_path / "broken").touch()
    with pytest.raises(subprocess.CalledProcessError):
        setup.compile_cuda(str(nvcc), tmp_path / "out")
