"""The stand-in for CUDA graphs shows what would go wrong on a GPU; else tests that pass on it would mean nothing."""

from __future__ import annotations

import pytest
import torch

from fastpure.errors import CaptureError
from tests.reverse.tracing import TracingRecorder

CPU = torch.device("cpu")


def test_a_replay_reads_and_writes_the_same_memory_and_runs_no_python():
    recorder, x, out, calls = TracingRecorder(CPU), torch.ones(3), torch.zeros(3), []

    def work():
        calls.append(1)
        out.copy_((x * 2 + len(calls)).relu_())

    (replay,) = recorder.record(work)
    baked = len(calls)
    x.fill_(5.0)
    replay()
    replay()
    assert out.tolist() == [10.0 + baked] * 3
    assert len(calls) == baked


def test_a_replay_includes_the_backward_pass_it_recorded():
    recorder, x, out = TracingRecorder(CPU), torch.ones(3), torch.zeros(3)

    def work():
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            y = leaf.sin()
        out.copy_(torch.autograd.grad(y, leaf, torch.ones(3))[0])

    (replay,) = recorder.record(work)
    x.fill_(0.25)
    replay()
    assert torch.equal(out, x.cos())


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0]) + x,
    ],
    ids=["item", "bool", "mask", "from the host"],
)
def test_waiting_for_the_device_is_refused(look):
    x = torch.ones(3)
    with pytest.raises(CaptureError, match="not permitted"):
        TracingRecorder(CPU).record(lambda: look(x))


def test_memory_nobody_holds_is_poisoned_and_held_memory_is_not():
    recorder, x, out, held = TracingRecorder(CPU), torch.ones(3), torch.zeros(2, 3), []

    def first():
        held[:] = [x * 2]
        held.append((x * 3).untyped_storage().data_ptr())  # an address does not hold

    def second():
        out[0].copy_(held[0])

    one, two = recorder.record(first, second)
    one()
    x.fill_(7.0)
    two()
    assert out[0].tolist() == [2.0] * 3
    assert len(recorder.free) == 1
    assert bool(recorder.free[0].isnan().all())


def test_lanes_that_race_are_found():
    recorder, x, out = TracingRecorder(CPU), torch.ones(3), torch.zeros(2, 3)

    def apart():
        mark = recorder.fork()
        out[0].copy_(x * 2)
        with recorder.beside(mark):
            y = x * 3
        out[1].copy_(y)

    def racing():
        mark = recorder.fork()
        y = x * 2  # issued after the fork, so the second lane does not wait for it
        with recorder.beside(mark):
            y + 1

    recorder.record(apart)
    with pytest.raises(AssertionError, match="races"):
        recorder.record(racing)
