"""Work recorded once and replayed on the same memory: CUDA graphs behind an interface that needs no GPU to test.

A work is a function without arguments that reads and writes tensors which stay where they are. What it allocates
lives in a pool of its recorder's, which holds it for as long as the recorder lives; replays allocate nothing.
"""

from __future__ import annotations

import gc
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ..errors import CaptureError
from ..kernels import preload

Work = Callable[[], None]
WARM_UPS = 2
"""Runs before the first recording: libraries load kernels and make plans when first asked."""


class Recorder(ABC):
    """A memory pool, what was recorded in it, and a second stream beside the main one."""

    @staticmethod
    @abstractmethod
    def reason_against() -> str | None:
        """Why this machine cannot record; None if it can."""

    @abstractmethod
    def __init__(self, device: torch.device) -> None:
        """A pool on ``device``."""

    @abstractmethod
    def record(self, *works: Work, warm: bool = False) -> list[Work]:
        """Run the works in order to warm up, then record each; returns what replays them.

        ``warm``: works that issue the same operations were recorded here before, so nothing is left to warm up.
        What a work raises while warming up it would raise without a recorder too, and passes through.

        Raises:
            CaptureError: a work cannot be recorded, for instance because it waits for the device.
        """

    @abstractmethod
    def follow(self) -> None:
        """Let what is issued next wait for replays issued before on another stream: they use the same memory."""

    @abstractmethod
    def fork(self) -> object:
        """A mark of what has been issued so far, for ``beside``."""

    @abstractmethod
    def beside(self, mark: object) -> AbstractContextManager[None]:
        """Inside, operations wait for ``mark`` only; after it, the main stream waits for them."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes the pool holds."""


class CudaRecorder(Recorder):
    """CUDA graphs in a memory pool of their own.

    Recording happens on a stream of its own and in thread-local mode, so that other threads (data loaders) may
    go on calling CUDA. Replays run on the caller's current stream. Recorders of one device share its two streams, each
    of which holds tens of megabytes of workspace, and therefore record one after the other.
    """

    @staticmethod
    def reason_against() -> str | None:
        """See ``Recorder.reason_against``."""
        if torch.version.cuda is None:
            return "this build of torch has no CUDA"
        return None if torch.cuda.is_available() else "no CUDA device can be used"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._main, self._side = _streams_of(device)
        self._used: torch.cuda.Stream | None = None
        self._nbytes = 0
        self._warm = False
        self._failed: str | None = None

    def record(self, *works: Work, warm: bool = False) -> list[Work]:
        """See ``Recorder.record``."""
        if self._failed is not None:
            raise CaptureError(f"an earlier recording in the same memory failed: {self._failed}")
        with _RECORDING, torch.cuda.device(self._device):
            preload(self._device)  # loading a kernel is not allowed while recording
            if not warm:
                try:
                    self._warm_up(works)
                except torch.OutOfMemoryError as error:  # other recordings hold memory
                    raise CaptureError(_first_cause(error)) from error
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            with _undisturbed():
                graphs = [self._capture(work) for work in works]
            self._nbytes += max(0, torch.cuda.memory_reserved() - before)
        return [graph.replay for graph in graphs]

    def _warm_up(self, works: tuple[Work, ...]) -> None:
        current = torch.cuda.current_stream()
        self._main.wait_stream(current)
        with torch.cuda.stream(self._main):
            for _ in range(0 if self._warm else WARM_UPS - 1):
                for work in works:
                    work()
            _check_waits_for_nothing(works)
        current.wait_stream(self._main)
        self._warm = True

    def _capture(self, work: Work) -> torch.cuda.CUDAGraph:
        """What ``torch.cuda.graph`` does, but an end that fails does not leave the allocator recording for ever."""
        graph = torch.cuda.CUDAGraph()
        failure: BaseException | None = None
        with torch.cuda.stream(self._main):
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                except BaseException as error:
                    failure = error
                graph.capture_end()
            except Exception as error:
                self._let_go_of_pool()
                failure = failure or error
        if failure is None:
            return graph
        self._failed = _first_cause(failure)
        if isinstance(failure, Exception):
            raise CaptureError(self._failed) from failure
        raise failure

    def _let_go_of_pool(self) -> None:
        """End what a failed recording has begun: until then ``empty_cache`` and running out of memory do not work."""
        # torch's own end of a recording comes to this only if CUDA's did not fail.
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            function = getattr(torch._C, name, None)
            if function is not None:
                function(index, self._pool)

    def follow(self) -> None:
        """See ``Recorder.follow``."""
        current = torch.cuda.current_stream(self._device)
        if self._used is not None and self._used != current:
            current.wait_stream(self._used)
        self._used = current

    def fork(self) -> torch.cuda.Event:
        """See ``Recorder.fork``."""
        return torch.cuda.current_stream(self._device).record_event()

    @contextmanager
    def beside(self, mark: object) -> Iterator[None]:
        """See ``Recorder.beside``."""
        assert isinstance(mark, torch.cuda.Event)
        main = torch.cuda.current_stream(self._device)
        self._side.wait_event(mark)
        try:
            with torch.cuda.stream(self._side):
                yield
        finally:
            main.wait_stream(self._side)  # a recording with a stream that never joins cannot be ended

    @property
    def nbytes(self) -> int:
        """See ``Recorder.nbytes``; growth of what torch has reserved while recording."""
        return self._nbytes


_RECORDING = threading.RLock()
"""Held while recording: the streams are shared, and torch records one graph at a time."""

_STREAMS: dict[int, tuple[torch.cuda.Stream, torch.cuda.Stream]] = {}


def _streams_of(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """The device's two streams to record on."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with _RECORDING:
        if index not in _STREAMS:
            _STREAMS[index] = (torch.cuda.Stream(index), torch.cuda.Stream(index))
        return _STREAMS[index]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Collect now and not inside: freeing other tensors' memory is not allowed while recording.

    Nor does autocast keep anything: a weight that a network cast before would be read where it no longer is.
    """
    gc.collect()
    collects, caches = gc.isenabled(), torch.is_autocast_cache_enabled()
    gc.disable()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(caches)
        if collects:
            gc.enable()


LOOKS = 3
"""How often works are seen to wait before they are believed to: the warnings of other threads are seen too."""


def _check_waits_for_nothing(works: tuple[Work, ...]) -> None:
    """Run the works once more and raise CaptureError where they wait for the device.

    Found out before recording, because torch's allocator does not survive a recording that fails by it. Torch's mode
    "error" would raise in every thread that waits, also in those that may; so it warns, and only what waits in every
    look is refused.
    """
    before = torch.cuda.get_sync_debug_mode()
    waits: list[str] = []
    for _ in range(LOOKS):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for work in works:
                    work()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = [
            f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)
        ]
        for other in caught:
            if "synchronizing CUDA operation" not in str(other.message):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        if not waits:
            return
    raise CaptureError(f"it waits for the device, at {waits[0]}")


def _first_cause(error: BaseException) -> str:
    """The words of what went wrong first: leaving an invalid recording raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


RECORDERS: dict[str, type[Recorder]] = {"cuda": CudaRecorder}
"""Device type -> what records there."""
