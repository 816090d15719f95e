"""Which back end runs, what happens where it cannot, and what the extension says about itself."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fastpure.errors import KernelUnavailable
from fastpure.kernels import (
    BACKENDS,
    OPS,
    NoiseKeys,
    Stream,
    backend_report,
    extension,
    philox_normal,
    registry,
    serves,
)
from fastpure.kernels import use_backend as use
from tests.kernels.helpers import EXTENSION, needs_ext

KEYS = NoiseKeys.make(0, [0])


def draw():
    return philox_normal(KEYS, 0, Stream.REVERSE, (1, 2, 2))


@pytest.fixture
def fresh_choices():
    """Choices are remembered; forget them before and after."""
    registry.forget()
    extension.load.cache_clear()
    yield
    registry.forget()
    extension.load.cache_clear()


@pytest.fixture
def no_extension(fresh_choices, monkeypatch):
    monkeypatch.setattr(extension, "load", lambda: extension.Extension(None, "the dog ate it"))


def test_a_forced_back_end_that_does_not_exist_raises():
    with (
        use("triton"),
        pytest.raises(KernelUnavailable, match="`philox_normal` has no `triton`"),
    ):
        draw()
    draw()


def test_a_forced_extension_that_is_missing_raises_with_the_reason(no_extension):
    with use("host"), pytest.raises(KernelUnavailable, match="philox_normal` on cpu: the dog ate it"):
        draw()


def test_the_older_name_of_the_extension_goes_by_the_device(fresh_choices, monkeypatch):
    spec = OPS["affine_row"]
    monkeypatch.setattr(extension, "load", lambda: extension.Extension(None, "the dog ate it"))
    with contextlib.ExitStack() as stack:
        with pytest.warns(DeprecationWarning, match='say "host" or "cuda"'):
            stack.enter_context(use("ext"))
        for device, half in (("cpu", "host"), ("cuda", "cuda")):
            with pytest.raises(KernelUnavailable, match=f"`ext` was .* on {device}: the dog"):
                registry.choose(spec, device, torch.float32)
            assert spec.reason_against(half, device, torch.float32) == "the dog ate it"
        with pytest.raises(KernelUnavailable, match="not mps"):
            registry.choose(spec, "mps", torch.float32)
        with pytest.raises(KernelUnavailable, match="`resample` has no `cuda`"):
            registry.choose(OPS["resample"], "cuda", torch.float32)
    assert registry.forced_backend("affine_row") is None


@needs_ext
def test_the_older_name_works_in_the_environment(fresh_choices, monkeypatch):
    monkeypatch.setenv("FASTPURE_BACKEND", "ext")
    x = torch.zeros(1, 4, 2, 2)
    assert registry.choose(OPS["affine_row"], "cpu", torch.float32) == "host"
    assert serves("affine_row", "host", x)
    assert not serves("affine_row", "reference", x)


def test_without_the_extension_the_reference_runs(no_extension):
    report = backend_report()
    why = "the dog ate it"
    assert report["extension"] == {"available": False, "reason": why, "build": {}, "cuda": why}
    for name, spec in OPS.items():
        entry = report["ops"][name]["cpu"]["float32"]
        assert entry["chosen"] == "reference"
        missing = why if "host" in spec.impls else f"`{name}` has no `host` implementation"
        assert entry["unavailable"]["host"] == missing
        assert "cuda" not in entry["unavailable"], "what serves other devices need not be listed"
    assert sum("host" in spec.impls for spec in OPS.values()) == len(OPS) == 8
    assert sum("cuda" in spec.impls for spec in OPS.values()) == 4
    with use("reference"):
        expected = draw()
    assert torch.equal(draw(), expected)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'reference', 'host', 'cuda', 'triton'"), use("fast"):
        pass


def test_the_innermost_choice_counts_and_is_undone():
    spec = OPS["affine_row"]
    with use("reference"):
        assert registry.choose(spec, "cpu", torch.float32) == "reference"
        with pytest.raises(KernelUnavailable), use("triton"):
            draw()
        assert registry.forced_backend("affine_row") == "reference"
    assert registry.forced_backend("affine_row") is None


def test_serves_says_who_runs_an_operation_and_honours_what_is_forced():
    x = torch.zeros(1, 4, 2, 2)
    wide = x.double()
    assert serves("resample", "reference", wide)
    assert not serves("resample", "triton", x)
    with use("reference"):
        assert serves("residual_add", "reference", x)
        assert not serves("residual_add", "triton", x)
    with use("triton"), pytest.raises(KernelUnavailable, match="`residual_add` on cpu"):
        serves("residual_add", "triton", x)


def test_environment_forces_all_or_one(fresh_choices, monkeypatch):
    monkeypatch.setenv("FASTPURE_BACKEND", "reference")
    monkeypatch.setenv("FASTPURE_BACKEND_AFFINE_ROW", "triton")
    assert registry.forced_backend("philox_normal") == "reference"
    assert registry.forced_backend("affine_row") == "triton"
    entry = backend_report()["ops"]["affine_row"]["cpu"]["float32"]
    assert entry["chosen"] is None
    assert "has no `triton` implementation" in entry["error"]


def test_a_wrong_environment_is_named(fresh_choices, monkeypatch):
    monkeypatch.setenv("FASTPURE_BACKEND", "fast")
    with pytest.raises(ValueError, match="`FASTPURE_BACKEND` must be one of"):
        draw()


def test_report_is_plain_data():
    report = json.loads(json.dumps(backend_report()))
    assert set(report["ops"]) == set(OPS)
    for devices in report["ops"].values():
        for entry in devices["cpu"].values():
            assert entry["chosen"] in BACKENDS
            assert entry["error"] is None


def by_name(codes):
    return {str(key).removeprefix("torch."): code for key, code in codes.items()}


@needs_ext
def test_the_extension_is_preferred_and_agrees_on_codes():
    assert registry.choose(OPS["affine_row"], "cpu", torch.float32) == "host"
    assert registry.choose(OPS["affine_row"], "mps", torch.float32) == "reference"
    build = EXTENSION.build
    assert build["dtypes"] == by_name(extension.DTYPE_CODES)
    assert build["layouts"] == by_name(extension.LAYOUT_CODES)
    assert build["noise_kinds"] == extension.NOISE_CODES
    assert build["instruction_sets"][-1] == "baseline"
    assert "-ffp-contract=off" in build["flags"]
    if torch.backends.openmp.is_available():
        assert "omp" in build["threads_from"]


def test_another_abi_disables_the_extension(fresh_choices, monkeypatch):
    module = SimpleNamespace(build_info=lambda: {"abi": extension.ABI + 1})
    monkeypatch.setitem(sys.modules, "fastpure._C", module)
    loaded = extension.load()
    assert loaded.module is None
    assert f"ABI {extension.ABI + 1}" in loaded.reason


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (None, "no build report"),
        ("{", "no build report"),
        ('{"extension": false, "reason": "no C++ compiler"}', "not built: no C++ compiler"),
    ],
)
def test_a_pure_python_installation_knows_why(fresh_choices, monkeypatch, tmp_path, report, words):
    if report is not None:
        (tmp_path / "report.json").write_text(report)
    monkeypatch.setattr(extension, "BUILD_REPORT", tmp_path / "report.json")
    monkeypatch.setitem(sys.modules, "fastpure._C", None)  # makes the import fail like a missing module
    loaded = extension.load()
    assert loaded.module is None
    assert words in loaded.reason


def test_the_environment_works_from_outside():
    code = (
        "from fastpure.kernels import backend_report as report;"
        "print(report()['ops']['affine_row']['cpu']['float32']['chosen'])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"FASTPURE_BACKEND": "reference"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "reference"


@needs_ext
@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline"])
def test_the_environment_bounds_the_instruction_set(name):
    script = "from fastpure.kernels import extension; print(*extension.load().build['instruction_sets'])"
    best = in_a_process(script, FASTPURE_MAX_CPU_ISA="avx512_bf16").stdout.split()
    found = in_a_process(script, FASTPURE_MAX_CPU_ISA=name)
    # One that this machine lacks bounds nothing.
    assert found.stdout.split() == (best[best.index(name) :] if name in best else best), found.stderr


def test_an_instruction_set_that_nobody_has_is_refused():
    found = in_a_process(
        "from fastpure.kernels import extension; extension.load()", FASTPURE_MAX_CPU_ISA="AVX2"
    )
    assert found.returncode != 0
    assert "FASTPURE_MAX_CPU_ISA" in found.stderr
    assert "'avx2'" in found.stderr


def in_a_process(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", script]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
