"""Every benchmark can be imported for nothing and runs under pytest-benchmark; `make bench` runs them all."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bench

MODULES = sorted(path.stem for path in Path(bench.__path__[0]).glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports(name):
    if name == "bench_apgd":
        pytest.importorskip("pyautoattack")
    assert importlib.import_module(f"bench.{name}").__doc__


FILES = sorted(Path(bench.__path__[0]).glob("bench_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_bench_has_tests_for_pytest_benchmark(path):
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    tests = [function for function in functions if function.name.startswith("test_")]
    assert tests
    for test in tests:
        assert "benchmark" in [argument.arg for argument in test.args.args], test.name


COUNTING = """
import importlib, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
import fastpure, fastpure.attacks, fastpure.baselines, fastpure.evaluate, fastpure.train
import fastpure.kernels.group_norm_silu.impl_triton

class Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise SystemExit(f"importing bench.{name} calls {func}")

for name in sys.argv[1:]:
    with Refusing():
        importlib.import_module(f"bench.{name}")
"""


def test_importing_a_bench_computes_nothing():
    words = [sys.executable, "-c", COUNTING, *(path.stem for path in FILES)]
    done = subprocess.run(words, cwd=FILES[0].parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_benches_are_collected_where_they_are_named_and_only_there():
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "bench"]
    root = FILES[0].parents[1]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    for path in FILES:
        assert f"bench/{path.name}::" in done.stdout
    assert 'testpaths = ["tests"]' in (root / "pyproject.toml").read_text()
