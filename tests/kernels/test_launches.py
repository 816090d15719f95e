"""Launches on Triton's real front end with a driver that only listens: how many there are, and what they are given."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from unittest import mock

import pytest
import torch

from fastpure.kernels import (
    group_norm_silu,
    group_norm_silu_of_sum,
    group_norm_silu_vjp,
    registry,
    triton_support,
)
from tests.kernels.triton.cases import INTERPRETING

if not (Path(__file__).parents[2] / "bench").is_dir():
    pytest.skip("bench/ belongs to the source tree, not to the wheel", allow_module_level=True)
if importlib.util.find_spec("triton") is None or INTERPRETING:
    pytest.skip("needs Triton, not interpreting", allow_module_level=True)

from bench import stub_driver as stub
from fastpure.nets import frozen, fused

MOST = {"forward": 480, "gradient": 1000}
"""Launches of one step of the official DDPM++ for one image; found: 453 and 912."""


@pytest.fixture
def seen():
    """Everything that is launched: (kernel, grid, stream, arguments with tensors as their addresses)."""
    with stub.stub_driver() as listener:
        yield listener


def activations(channels: int, size: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(2, channels, size, size).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def quick(monkeypatch):
    """On the CPU, convolutions with packed weights compare them each time, which no device is asked to."""
    monkeypatch.setattr(frozen, "can_pack", lambda *args: False)
    monkeypatch.setattr(fused, "can_map", lambda *args: False)


@pytest.mark.slow
def test_one_step_launches_little_and_compiles_once(seen, quick):
    for name, call in stub.step().items():
        with stub.Operations():
            call()
        seen.launches.clear()
        compiled = len(seen.compiled)
        with stub.Operations() as counted:
            call()
        parts = seen.launches.total() - sum(
            n for op, n in counted.counts.items() if op.startswith("fastpure::")
        )
        assert parts >= 0
        assert counted.counts.total() + parts <= MOST[name], counted.counts
        assert "clone" not in counted.counts
        assert "copy_" not in counted.counts
        assert len(seen.compiled) == compiled, "compiled again for the same shapes"
    for call in stub.step(batch=2).values():
        with stub.Operations():
            call()
    assert len(seen.compiled) == compiled, "compiled again for another batch"


def calls(dtype):
    """Every operation with and without its optional inputs."""
    x, other, skip, both = activations(32, 8), activations(32, 8), activations(16, 8), activations(48, 8)
    stats = torch.randn(2, 8, 2)
    wide, row, rows = torch.randn(48).to(dtype), torch.randn(32).to(dtype), torch.randn(2, 32).to(dtype)
    yield from stub.operations(dtype).values()
    yield lambda: group_norm_silu_of_sum(x, other, row, row, 8, 1e-5, row=rows, scale=0.5, resample="down")
    yield lambda: group_norm_silu(x, rows, rows, 8, 1e-5, activate=False)
    yield lambda: group_norm_silu(x, wide, wide, 8, 1e-5, skip=skip, row=rows, resample="up")
    yield lambda: group_norm_silu_vjp(both, x, stats, wide, wide, 8, skip=skip, more=other, scale=0.5)
    large, affine = activations(512, 64), torch.ones(2, 512).to(dtype).unbind()
    yield lambda: group_norm_silu_of_sum(large, large, *affine, 8, 1e-5)  # more than one kernel


def test_the_direct_call_is_given_what_the_front_end_gives(seen):
    given: list[tuple] = []
    plain = stub._Driver.listen

    def handed(value):
        return value.data_ptr() if isinstance(value, torch.Tensor) else value

    def listen(self, name, *args):
        given.append((name, *args[:6], *map(handed, args[9:])))
        plain(self, name, *args)

    with mock.patch.object(stub._Driver, "listen", listen), torch.no_grad():
        for call in calls(torch.bfloat16):
            call()  # by the front end
            given.clear()
            with fixed_memory() as replay:
                call()
                direct = list(given)
                given.clear()
                replay()
                with mock.patch.object(triton_support, "_watched", return_value=True):
                    call()
            assert direct == given
            assert direct


class fixed_memory:
    """Inside, fresh tensors are made of memory that is given out in the same order again."""

    def __enter__(self):
        self.made, self.place = [], 0
        plain = {name: getattr(torch, name) for name in ("empty", "empty_like")}

        def again(name):
            def make(*args, **options):
                if self.place == len(self.made):
                    self.made.append(plain[name](*args, **options))
                self.place += 1
                return self.made[self.place - 1]

            return make

        self.patches = [mock.patch.object(torch, name, again(name)) for name in plain]
        for patch in self.patches:
            patch.start()
        return self._replay

    def _replay(self):
        self.place = 0

    def __exit__(self, *error):
        for patch in self.patches:
            patch.stop()


def test_unaligned_addresses_are_seen_at_every_call(seen):
    dtype = torch.bfloat16
    x, buffer = activations(32, 8), torch.randn(33).to(dtype)
    aligned, shifted = buffer[:32].clone(), buffer[1:]
    assert shifted.data_ptr() % 16
    with torch.no_grad():
        for _ in range(2):
            group_norm_silu(x, aligned, aligned, 8, 1e-5)
        (usual,) = set(seen.kernels)
        for _ in range(2):
            group_norm_silu(x, shifted, aligned, 8, 1e-5)
        assert len(seen.compiled) == 2, "one more for a weight that allows no wide access"
        special = seen.kernels[-1]
        assert special != usual
        assert seen.kernels[-2] == special
        group_norm_silu(x, aligned, aligned, 8, 1e-5)
        assert seen.kernels[-1] == usual


def test_checks_run_again_for_other_arguments(seen):
    x, weight = activations(32, 8), torch.ones(32)
    with torch.no_grad():
        for _ in range(3):
            group_norm_silu(x, weight, weight, 8, 1e-5)
        with pytest.raises(ValueError, match="`weight` must be dense"):
            group_norm_silu(x, weight[:31], weight, 8, 1e-5)
        with pytest.raises(ValueError, match="`weight` must be dense"):
            group_norm_silu(x, torch.ones(64)[::2], weight, 8, 1e-5)
        with pytest.raises(TypeError, match="`weight` must be a floating-point tensor"):
            group_norm_silu(x, weight.long(), weight, 8, 1e-5)
        with pytest.raises(ValueError, match="`eps`"):
            group_norm_silu(x, weight, weight, 8, 0.0)


def test_signatures_are_bounded(seen, monkeypatch):
    monkeypatch.setattr(registry, "MOST_PREPARED", 3)
    with torch.no_grad():
        for batch in range(1, 9):
            x = torch.randn(batch, 8, 4, 4).contiguous(memory_format=torch.channels_last)
            group_norm_silu(x, torch.ones(8), torch.ones(8), 2, 1e-5)
            assert len(registry._prepared) <= 3
    assert seen.launches.total() == 8


@pytest.mark.parametrize("change", ["a newer Triton", "a profiler"])
def test_what_the_front_end_alone_can_do_is_left_to_it(seen, monkeypatch, change):
    import triton

    if change == "a profiler":
        told: list[object] = []
        triton.knobs.runtime.launch_enter_hook.add(told.append)
    else:
        loaded = triton_support.load()
        newer = triton_support.Support(loaded.module, None, direct=False)
        monkeypatch.setattr(triton_support, "load", lambda: newer)
    try:
        x, weight = activations(32, 8), torch.ones(32)
        with (
            torch.no_grad(),
            mock.patch.object(
                triton_support._Call,
                "by_front_end",
                autospec=True,
                side_effect=triton_support._Call.by_front_end,
            ) as front_end,
        ):
            for _ in range(3):
                group_norm_silu(x, weight, weight, 8, 1e-5)
        assert front_end.call_count == 3
    finally:
        if change == "a profiler":
            triton.knobs.runtime.launch_enter_hook.remove(told.append)
