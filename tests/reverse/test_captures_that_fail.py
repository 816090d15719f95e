"""Recordings that fail in the middle, on a GPU: in a process of their own, as torch may be left broken by them.

What can be found out before a recording begins is refused there; these works change their mind inside.
"""

from __future__ import annotations

import gc

import pytest
import torch

from fastpure.errors import CaptureError
from fastpure.reverse.recorder import CudaRecorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIZE = 1 << 22


def fail_in_recording(x: torch.Tensor) -> None:
    y = x * 2
    if torch.cuda.is_current_stream_capturing():
        y.sum().item()


def reserved() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def test_the_allocator_works_on():
    """In torch 2.11 ``empty_cache`` gives nothing back while it believes that somebody records."""
    x = torch.ones(SIZE, device="cuda")
    for _ in range(3):
        with pytest.raises(CaptureError, match="captur"):
            CudaRecorder(x.device).record(lambda: fail_in_recording(x))
    before = reserved()
    big = torch.empty(64 * SIZE, device="cuda")
    assert torch.cuda.memory_reserved() >= before + big.nbytes
    del big
    assert reserved() <= before


def test_random_numbers_can_be_drawn():
    """In torch 2.11 the generator stays in recording: "Offset increment outside graph capture"."""
    x = torch.ones(SIZE, device="cuda")
    with pytest.raises(CaptureError, match="captur"):
        CudaRecorder(x.device).record(lambda: fail_in_recording(x))
    assert float(torch.rand(64, device="cuda").std()) > 0


def test_pinned_memory_can_be_allocated():
    """Its allocator asks the graph whose capture failed; that must be there still."""
    x = torch.ones(SIZE, device="cuda")
    with pytest.raises(CaptureError, match="captur"):
        CudaRecorder(x.device).record(lambda: fail_in_recording(x))
    others = [torch.cuda.CUDAGraph() for _ in range(64)]  # where a freed one would have been
    assert float(torch.ones(SIZE).pin_memory().to("cuda", non_blocking=True).sum()) == len(others) * SIZE / 64


def test_running_out_of_memory_is_retried_with_an_empty_cache():
    x = torch.ones(SIZE, device="cuda")
    with pytest.raises(CaptureError, match="captur"):
        CudaRecorder(x.device).record(lambda: fail_in_recording(x))
    free, _ = torch.cuda.mem_get_info()
    first = torch.empty(int(free * 0.6), dtype=torch.uint8, device="cuda")
    del first  # cached as one block, which the next two do not fit into side by side with what is free
    second = torch.empty(int(free * 0.3), dtype=torch.uint8, device="cuda")
    third = torch.empty(int(free * 0.5), dtype=torch.uint8, device="cuda")
    assert second.numel() + third.numel() > 0.7 * free


def test_another_recorder_records_and_replays():
    x = torch.ones(SIZE, device="cuda")
    one = CudaRecorder(x.device)
    with pytest.raises(CaptureError, match="captur"):
        one.record(lambda: fail_in_recording(x))
    with pytest.raises(CaptureError, match="an earlier recording in the same memory failed"):
        one.record(lambda: None)
    out = torch.zeros(SIZE, device="cuda")
    (replay,) = CudaRecorder(x.device).record(lambda: out.copy_(x * 3))
    out.zero_()
    replay()
    assert float(out.sum()) == 3 * SIZE


def test_running_out_of_memory_inside_is_an_error_of_the_recording():
    free, _ = torch.cuda.mem_get_info()
    x = torch.ones(SIZE, device="cuda")

    def work() -> None:
        torch.empty(free if torch.cuda.is_current_stream_capturing() else 1, device="cuda")

    with pytest.raises(CaptureError, match=r"OutOfMemoryError|out of memory"):
        CudaRecorder(x.device).record(work)
    assert float((x + 1).sum()) == 2 * SIZE
