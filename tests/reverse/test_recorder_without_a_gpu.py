"""What ``CudaRecorder`` asks of a torch.cuda that only listens: failures, waits, streams, devices, collection."""

from __future__ import annotations

import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

import fastpure as fp
from fastpure.errors import CaptureError
from fastpure.kernels import extension
from fastpure.reverse import recorder
from fastpure.reverse.graphs import Graphs, _kernel_choices
from tests.reverse.capturing import METHODS, both, images, pair
from tests.reverse.toys import toy_classifier
from tests.reverse.tracing import TracingRecorder

pytestmark = pytest.mark.filterwarnings("error")

WAITS = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp)"


class Stream:
    def __init__(self, device=None):
        self.device = device

    def wait_stream(self, other):
        pass


class Listening:
    """torch.cuda as far as the recorder needs it; what it was asked for is in ``asked``."""

    def __init__(self, monkeypatch):
        self.asked: list[tuple] = []
        self.mode, self.capturing, self.end_fails = 0, False, False
        self.underway: list[tuple[int, int]] = []
        self.draws = self.ends_itself = True
        listening = self

        class Graph:
            def capture_begin(self, capture_error_mode, pool=(0, 1)):
                listening.asked.append(("begin", pool, gc.isenabled()))
                listening.underway.append(pool)
                listening.capturing, listening.draws, self.pool = True, False, pool

            def capture_end(self):
                listening.asked.append(("end",))
                fails = listening.end_fails and self.pool == (0, 7)
                listening.capturing = False
                if not fails or listening.ends_itself:
                    listening.underway.remove(self.pool)
                if fails:
                    raise RuntimeError("operation failed due to a previous error during capture")
                listening.draws = True  # the generator of random numbers

            def replay(self):
                pass

        def answer(name, value=None):
            def call(*args, **kwargs):
                self.asked.append((name, *args))
                return value

            return call

        here = Stream(1)
        for name, value in {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "graph_pool_handle": lambda: (0, 7),
            "device": lambda device: nullcontext(self.asked.append(("device", device))),
            "stream": lambda stream: nullcontext(),
            "current_stream": lambda device=None: here,
            "current_device": lambda: 1,
            "synchronize": answer("synchronize"),
            "empty_cache": answer("empty_cache"),
            "memory_reserved": answer("memory_reserved", 0),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self._set_mode,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", answer("_cuda_releasePool"), raising=False)
        monkeypatch.setattr(recorder, "_something_on", lambda device: torch.zeros(1))
        monkeypatch.setattr(recorder, "_FAILED", [])
        monkeypatch.setattr(recorder, "preload", lambda device: None)
        monkeypatch.setattr(recorder, "_STREAMS", {})

    def _end(self, device, pool):
        self.asked.append(("_cuda_endAllocateToPool", device, pool))
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def _set_mode(self, mode):
        self.mode = mode
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    def names(self):
        return [entry[0] for entry in self.asked]

    def wait(self):
        """What an operation that waits for the device does in the mode "warn"."""
        if self.mode == "warn":
            warnings.warn(WAITS, stacklevel=1)


@pytest.fixture
def cuda(monkeypatch):
    return Listening(monkeypatch)


def made(index=1):
    return recorder.CudaRecorder(torch.device("cuda", index))


def test_what_waits_is_refused_before_a_recording_begins(cuda):
    with pytest.raises(
        CaptureError, match=r"waits for the device, which .* at .*test_recorder_without_a_gpu.py:\d+"
    ):
        made().record(cuda.wait)
    assert "begin" not in cuda.names()
    assert cuda.mode == 0, "the mode is the caller's again"


def test_what_another_thread_waits_for_refuses_nothing_and_warns_nobody(cuda):
    def work():
        if cuda.mode == "warn":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(cuda.wait).result()

    (replay,) = made().record(work)
    assert callable(replay)
    assert cuda.names().count("begin") == 1


def test_other_warnings_and_errors_pass(cuda):
    def work():
        warnings.warn("something else", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        made().record(work)

    def wrong():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made().record(wrong)
    assert cuda.mode == 0


@pytest.mark.parametrize("ends_itself", [False, True], ids=["2.11", "later"])
def test_after_a_recording_that_fails_torch_works_as_before(cuda, ends_itself):
    """In torch 2.11 nobody else gives the pool back; the allocator and the generator would stay in recording."""
    cuda.end_fails, cuda.ends_itself = True, ends_itself

    def work():
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    one = made()
    with pytest.raises(CaptureError, match="not permitted"):
        one.record(work)
    assert cuda.underway == []
    assert cuda.draws
    assert cuda.names().count("_cuda_releasePool") == (0 if ends_itself else 1)
    assert len(recorder._FAILED) == (0 if ends_itself else 1), (
        "pinned memory's allocator asks it at its address"
    )
    assert gc.isenabled()
    with pytest.raises(
        CaptureError, match="an earlier recording in the same memory failed: RuntimeError: operation not"
    ):
        one.record(lambda: None)


def test_what_failed_is_freed_without_the_collector(cuda):
    gc.collect()
    gc.disable()
    try:
        x = torch.ones(3)
        alive = weakref.ref(x)

        def work(x=x):
            if cuda.capturing:
                raise ValueError(f"no {len(x)}")

        with pytest.raises(CaptureError, match="ValueError: no 3"):
            made().record(work)
        del x, work
        assert alive() is None
    finally:
        gc.enable()


def test_an_error_that_the_caller_is_handling_is_not_the_cause(cuda):
    def work():
        if cuda.capturing:
            raise ValueError("no")

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(CaptureError, match="ValueError: no"):
            made().record(work)
    assert "_cuda_releasePool" not in cuda.names(), "a recording that ended well gives nothing back twice"


def test_an_interrupt_ends_the_recording_and_stays_one(cuda):
    def work():
        if cuda.capturing:
            raise KeyboardInterrupt

    cuda.end_fails, cuda.ends_itself = True, False
    with pytest.raises(KeyboardInterrupt):
        made().record(work)
    assert cuda.underway == []
    assert cuda.draws


def test_nothing_is_collected_inside_and_all_is_before(cuda, monkeypatch):
    collected: list[bool] = []
    monkeypatch.setattr(recorder.gc, "collect", lambda: collected.append(cuda.capturing))
    one = made()
    one.record(lambda: None, lambda: None)
    one.record(lambda: None, warm=True)
    assert collected == [False]
    assert [entry[2] for entry in cuda.asked if entry[0] == "begin"] == [False] * 3
    assert gc.isenabled()


def test_autocast_keeps_nothing_inside(cuda):
    caches: list[tuple[bool, bool]] = []
    made().record(lambda: caches.append((cuda.capturing, torch.is_autocast_cache_enabled())))
    assert caches == [(False, True)] * recorder.WARM_UPS + [(True, False)]
    assert torch.is_autocast_cache_enabled()


def test_recorders_of_a_device_share_two_streams(cuda):
    one, other, elsewhere = made(), made(), made(0)
    assert (one._main, one._side) == (other._main, other._side)
    assert one._main is not one._side
    assert elsewhere._main is not one._main
    assert (one._main.device, elsewhere._main.device) == (1, 0)


def test_rows_of_a_kind_warm_up_once(cuda):
    runs: list[bool] = []
    one = made()
    one.record(lambda: runs.append(cuda.capturing))
    assert runs == [False] * recorder.WARM_UPS + [True]
    cuda.asked.clear()
    one.record(lambda: runs.append(cuda.capturing), warm=True)
    assert runs[recorder.WARM_UPS + 1 :] == [True]
    assert not {"synchronize", "empty_cache"} & set(cuda.names()), "nor is the device waited for"


def test_slots_of_a_kind_are_announced_as_warm(monkeypatch):
    monkeypatch.setitem(recorder.RECORDERS, "cpu", TracingRecorder)
    asked: list[bool] = []
    plain = TracingRecorder.record

    def record(self, *works, warm=False):
        asked.append(warm)
        return plain(self, *works, warm=warm)

    monkeypatch.setattr(TracingRecorder, "record", record)
    graphed, eager = pair(METHODS["coup_step"](toy_classifier(torch.float32)), "cpu", memory="store")
    for turn in range(4):
        x = images(2, "cpu", turn)
        assert all(map(torch.equal, both(graphed, x), both(eager, x)))
    assert asked.count(False) < asked.count(True)


def test_a_dropped_purifier_frees_its_recordings_without_the_collector(monkeypatch):
    monkeypatch.setitem(recorder.RECORDERS, "cpu", TracingRecorder)
    graphed, _ = pair(METHODS["coup_step"](toy_classifier(torch.float32)), "cpu", memory="recompute")
    both(graphed, images(2, "cpu"))
    (family,) = graphed.executor._families.values()
    alive = weakref.ref(family.recorder)
    del family
    gc.collect()
    gc.disable()
    try:
        del graphed
        assert alive() is None
    finally:
        gc.enable()


CHOICES = {
    "cudnn deterministic": lambda on: setattr(torch.backends.cudnn, "deterministic", on),
    "cudnn benchmark": lambda on: setattr(torch.backends.cudnn, "benchmark", on),
    "deterministic algorithms": lambda on: torch.use_deterministic_algorithms(on),
    "fp16 sums": lambda on: setattr(
        torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", not on
    ),
    "bf16 sums": lambda on: setattr(
        torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", not on
    ),
    "flash": lambda on: torch.backends.cuda.enable_flash_sdp(not on),
    "efficient": lambda on: torch.backends.cuda.enable_mem_efficient_sdp(not on),
    "cudnn attention": lambda on: torch.backends.cuda.enable_cudnn_sdp(not on),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_chooses_kernels_is_part_of_a_recording_s_signature(name):
    before = _kernel_choices()
    CHOICES[name](True)
    try:
        assert _kernel_choices() != before
    finally:
        CHOICES[name](False)
    assert _kernel_choices() == before


def test_steps_run_under_deterministic_convolutions():
    seen: list[tuple[bool, bool]] = []

    class Looking(torch.nn.Module):
        def forward(self, x, labels):
            seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
            return x

    denoiser = fp.Denoiser.from_module(Looking().eval(), image_shape=(3, 8, 8))
    purifier = fp.Purifier(denoiser, fp.methods.ddpm(t=0.1, n_steps=2))
    torch.backends.cudnn.benchmark = True
    try:
        purifier(torch.rand(1, 3, 8, 8))
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)
    finally:
        torch.backends.cudnn.benchmark = False
    assert set(seen) == {(True, False)}


def test_the_extension_is_called_on_the_tensor_s_device(cuda, monkeypatch):
    """By torch's guard, which wakes no other device; and without one where that device is current already."""
    called: list[tuple] = []

    class Module:
        def noise(self, device, stream, arguments, rest):
            called.append((device, stream))

    class Somewhere:
        is_cuda = True

        def __init__(self, index):
            self.device = torch.device("cuda", index)

    stream = Stream()
    stream.cuda_stream = 5
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(extension, "module_for", lambda index: Module())
    for index, guarded in ((1, []), (0, [("device", 0)])):
        cuda.asked.clear()
        extension.call("noise", Somewhere(index), ())
        assert called[-1] == (index, 5)
        assert cuda.asked == guarded


def test_graphs_hold_no_process_that_holds_them():
    assert not any("process" in name for name in vars(Graphs()))
