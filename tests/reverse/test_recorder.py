"""CUDA graphs behind the recorder's interface, on a GPU; elsewhere only that there are none, and why."""

from __future__ import annotations

import gc

import pytest
import torch

from fastpure.errors import CaptureError, KernelUnavailable
from fastpure.reverse import Execution, check_backend, planned, recorder
from fastpure.reverse.recorder import CudaRecorder

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SIZE = 1 << 20


@pytest.fixture
def cuda():
    return torch.device("cuda", torch.cuda.current_device())


def test_what_is_planned(monkeypatch):
    cpu = torch.device("cpu")
    assert planned("eager", cpu) == Execution("eager", "asked for")
    assert planned("auto", cpu).backend == "eager"
    with pytest.raises(
        KernelUnavailable, match="backend='graph' was asked for, but graphs need a CUDA device"
    ):
        planned("graph", cpu)
    monkeypatch.setattr(CudaRecorder, "reason_against", staticmethod(lambda: None))
    assert planned("auto", torch.device("cuda", 0)) == Execution("graph", "steps are replayed on cuda:0")
    assert "rule of its own" in planned("auto", torch.device("cuda", 0), rows=False).reason
    assert check_backend("graph") == "graph"
    monkeypatch.setattr(CudaRecorder, "reason_against", staticmethod(lambda: "the driver is missing"))
    assert planned("auto", torch.device("cuda", 0)) == Execution("eager", "the driver is missing")
    with pytest.raises(KernelUnavailable, match="cuda: the driver is missing"):
        check_backend("graph")


def test_the_first_cause_is_told():
    try:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nwith many lines")
        except RuntimeError:
            raise ValueError("capture was invalidated")  # noqa: B904 - as leaving a failed recording does
    except ValueError as error:
        words = recorder._told(recorder._first_cause(error, None))
    assert words == "RuntimeError: operation not permitted when stream is capturing"


@pytest.mark.gpu
@needs_cuda
def test_lanes_meet_again(cuda):
    record, x, out = CudaRecorder(cuda), torch.zeros(SIZE, device=cuda), torch.zeros(SIZE, device=cuda)

    def work():
        mark, a = record.fork(), x
        for _ in range(30):
            a = a + 1
        with record.beside(mark):
            b = x
            for _ in range(60):
                b = b * 2 - x
        out.copy_(a + b)

    (replay,) = record.record(work)
    assert record.nbytes > 0
    for value in (1.0, 3.0, -2.0):
        x.fill_(value)
        replay()
        assert torch.equal(out, torch.full_like(out, 2 * value + 30))


@pytest.mark.gpu
@needs_cuda
def test_autograd_twice_is_recorded(cuda):
    record, x, out = CudaRecorder(cuda), torch.zeros(64, device=cuda), torch.zeros(64, device=cuda)

    def work():
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            (g,) = torch.autograd.grad(leaf.sin().sum(), leaf, create_graph=True)
        out.copy_(torch.autograd.grad(g, leaf, torch.ones_like(g))[0])

    (replay,) = record.record(work)
    x.copy_(torch.linspace(0, 3, 64))
    replay()
    assert torch.allclose(out, -x.sin(), atol=1e-6)


@pytest.mark.gpu
@needs_cuda
def test_what_cannot_be_recorded_is_found_out_and_leaves_nothing_behind(cuda):
    x, before = torch.ones(SIZE, device=cuda), torch.cuda.current_stream()
    with pytest.raises(CaptureError, match=r"waits for the device, at .*test_recorder.py"):
        CudaRecorder(cuda).record(lambda: x.sum().item())
    assert torch.cuda.current_stream() == before
    assert float((x + 1).sum()) == 2 * SIZE
    record, out = CudaRecorder(cuda), torch.zeros(SIZE, device=cuda)
    (replay,) = record.record(lambda: out.copy_(x * 3))
    replay()
    assert float(out.sum()) == 3 * SIZE


@pytest.mark.gpu
@needs_cuda
def test_replays_from_another_stream_wait_for_earlier_ones(cuda):
    record, x, out = CudaRecorder(cuda), torch.ones(SIZE, device=cuda), torch.zeros(SIZE, device=cuda)

    def work():
        y = x
        for _ in range(200):
            y = y + 1
        out.copy_(y)

    (replay,) = record.record(work)
    record.follow()
    replay()
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        record.follow()
        x.fill_(5.0)  # would be read by the first replay, if it still ran
        first = out.clone()
        replay()
        second = out.clone()
    torch.cuda.synchronize()
    assert float(first.min()) == float(first.max()) == 201.0
    assert float(second.min()) == float(second.max()) == 205.0


@pytest.mark.gpu
@needs_cuda
def test_the_pool_is_given_back(cuda):
    def reserved() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    def growth() -> int:
        x, record = torch.ones(64, SIZE // 4, device=cuda), CudaRecorder(cuda)
        held = record.record(lambda: (x * 2).sum(0))
        return reserved() - before if held else 0

    before = reserved()
    assert growth() > 2 * 64 * SIZE  # x and its double
    assert reserved() <= before + (1 << 25)  # workspaces of libraries may stay
