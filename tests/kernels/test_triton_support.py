"""Triton is found or missed for a stated reason; tile sizes keep their promises."""

from __future__ import annotations

import collections
import contextlib
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


def test_every_device_must_be_able_to_run_the_kernels(monkeypatch):
    """The choice is made per device type, so the oldest device decides, not the current one."""
    capabilities = [(9, 0), (7, 5)]
    monkeypatch.setattr(triton_support, "load", lambda: triton_support.Support(object(), None))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[device or 0])
    triton_support._cuda_trouble.cache_clear()
    try:
        reason = triton_support.unavailable("cuda", torch.float32)
        assert reason == "cuda:1 has compute capability 7.5, Triton kernels here need 8.0"
        triton_support._cuda_trouble.cache_clear()
        capabilities[1] = (8, 0)
        assert triton_support.unavailable("cuda", torch.float32) is None
    finally:
        triton_support._cuda_trouble.cache_clear()


def test_kernels_run_on_the_device_of_the_tensors(monkeypatch):
    """Under torch's guard where another device is current, on that device's stream; compiled for its generation."""
    events: list[object] = []

    class Driver:
        current = 0

        def get_current_device(self):
            return self.current

        def get_current_stream(self, device):
            return f"stream of {device}"

    driver = Driver()

    @contextlib.contextmanager
    def guard(device):
        events.append(device)
        before, driver.current = driver.current, device.index
        yield
        driver.current = before

    class Somewhere:
        shape = (3, 1, 1, 1)

        def __init__(self, index):
            self.device = torch.device("cuda", index)

        def data_ptr(self):
            return 1 << 20

    class Compiled:
        function, packed_metadata = "function", "packed"

        def run(self, *args):
            events.append(args)

    class Kernel:
        arg_names = ("x_ptr", "gone_ptr", "SIZE")

        def __getitem__(self, grid):
            return lambda **arguments: events.append((grid, arguments)) or Compiled()

    launch = triton_support.Launch(
        Kernel(), 2, {"x_ptr": "x", "gone_ptr": "gone"}, {"SIZE": 5}, triton_support.Tile(1, 1, 4)
    )
    monkeypatch.setattr(triton_support, "load", lambda: triton_support.Support(object(), None))
    monkeypatch.setattr(triton_support, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "device", guard)
    arguments = collections.namedtuple("arguments", ["x", "gone"])
    for index in (0, 1):
        x = Somewhere(index)
        run = triton_support.Runner([launch], arguments(x, None))
        for _ in range(2):
            run(arguments(x, None))
        guards = [torch.device("cuda", 1)] if index else []
        given = {"x_ptr": x, "gone_ptr": None, "SIZE": 5, "num_warps": 4, **triton_support.OPTIONS}
        direct = (6, 1, 1, f"stream of {index}", "function", "packed", None, None, None, 1 << 20, None, 5)
        assert events == [*guards, ((6,), given), *guards, direct]
        events.clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(9, 0), (8, 6)][device.index])
    triton_support.architecture.cache_clear()
    assert [triton_support.architecture(torch.device("cuda", i)) for i in (0, 1)] == [90, 80]
    triton_support.architecture.cache_clear()
