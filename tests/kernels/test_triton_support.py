"""Triton is found or missed for a stated reason; tile sizes keep their promises."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fastpure.kernels import triton_support
from fastpure.kernels.triton_support import RULES, ceil_power, finish_tile, flat_tile, free_tile, group_tile

ARCHITECTURES = triton_support.ARCHITECTURES


@pytest.fixture
def load(monkeypatch):
    """`load` with another module, or none, in the place of triton."""

    def with_module(module):
        monkeypatch.setitem(sys.modules, "triton", module)
        triton_support.load.cache_clear()
        return triton_support.load()

    yield with_module
    triton_support.load.cache_clear()


def test_absence_is_remembered_with_its_reason(load):
    assert load(None).module is None
    reason = triton_support.unavailable("cuda", torch.float32)
    assert reason == "Triton is not installed (pip install triton)"


def test_an_old_version_is_refused(load):
    assert (
        load(SimpleNamespace(__version__="2.3.1")).reason
        == "Triton 2.3.1 is too old (these kernels need 3.6)"
    )


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0", "4.0.1+git123"])
def test_newer_versions_are_welcome(load, monkeypatch, version):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    support = load(SimpleNamespace(__version__=version))
    assert support.reason is None
    assert not support.interpreted
    assert "need a CUDA device, not cpu" in triton_support.unavailable("cpu", torch.float32)
    assert "float64 is not supported" in triton_support.unavailable("cuda", torch.float64)


def test_the_interpreter_serves_the_cpu_only(load, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert load(SimpleNamespace(__version__="3.6.0")).interpreted
    assert triton_support.unavailable("cpu", torch.bfloat16) is None
    assert "interpreting" in triton_support.unavailable("cuda", torch.bfloat16)


def test_importing_the_kernels_does_not_import_triton():
    code = "import sys, fastpure.kernels; assert 'triton' not in sys.modules"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


SITES = [
    (h * h, c, g)
    for h in (1, 4, 8, 16, 32, 64)
    for c, g in ((16, 4), (32, 8), (128, 32), (384, 32), (1536, 32))
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("size", "channels", "groups"), SITES)
def test_a_tile_holds_whole_groups_and_begins_where_wide_accesses_can(
    architecture, itemsize, size, channels, groups
):
    for kernel in ("forward_fused", "backward_fused"):
        tile = group_tile(architecture, kernel, size, channels, groups, itemsize)
        rule = RULES[architecture][kernel]
        if tile is None:
            assert ceil_power(size) * (channels // groups) * itemsize * 2 > rule.most
            continue
        width = tile.groups * channels // groups
        assert tile.pixels >= size
        assert width <= tile.channels < 2 * max(width, 1)
        assert tile.elements * itemsize <= rule.most
        assert width * itemsize % 16 == 0 or tile.groups == groups
        assert 1 <= tile.groups <= groups


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tile_is_a_power_of_two_and_every_thread_has_work(architecture):
    tiles = [
        (free_tile(architecture, k, s, c, i), i)
        for k in RULES[architecture]
        if not k.endswith("fused")
        for s in (1, 17, 65536)
        for c in (1, 24, 512)
        for i in (2, 4)
    ]
    tiles += [(flat_tile(architecture, "residual", i), i) for i in (2, 4)]
    tiles += [(finish_tile(tiles_, width), 4) for tiles_ in (1, 3, 512) for width in (1, 12, 64, 8192)]
    for tile, _ in tiles:
        for number in (tile.pixels, tile.channels, tile.warps):
            assert number & (number - 1) == 0
        assert 1 <= tile.warps <= 16
        assert tile.warps == 1 or tile.elements >= 32 * tile.warps


def test_sums_of_a_large_image_are_combined_in_blocks():
    tile = finish_tile(math.ceil(65536 / 128), 64)
    assert tile.elements == 4096
