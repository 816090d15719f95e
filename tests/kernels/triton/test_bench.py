"""The benchmark of these kernels still runs; what it measures takes a device."""

from __future__ import annotations

from pathlib import Path

import pytest

if not (Path(__file__).parents[3] / "bench").is_dir():
    pytest.skip("bench/ belongs to the source tree, not to the wheel", allow_module_level=True)

from bench import bench_group_norm
from tests.kernels.triton.cases import INTERPRETING


@pytest.mark.skipif(not INTERPRETING, reason="the interpreter's smoke run; a device has the benchmark itself")
def test_the_benchmark_runs_without_a_device(capsys):
    bench_group_norm.main([])
    assert "digits 8x8x16, fp32, backward: error" in capsys.readouterr().out
