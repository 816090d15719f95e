"""Work recorded once and replayed on the same memory: CUDA graphs behind an interface that needs no GPU to test.

A work is a function without arguments that reads and writes tensors which stay where they are. What it allocates
lives in a pool of its recorder's, which holds it for as long as the recorder lives; replays allocate nothing.
"""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

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
        self._something = _something_on(device)
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
                    raise CaptureError(_told(error)) from error
            before = torch.cuda.memory_reserved()
            with _undisturbed():
                graphs = [self._capture(work) for work in works]
            self._nbytes += max(0, torch.cuda.memory_reserved() - before)
        return [graph.replay for graph in graphs]

    def _warm_up(self, works: tuple[Work, ...]) -> None:
        # The streams are shared: memory that they allocated may have been freed by a batch whose replays still run
        # on another thread's stream. Waiting for all of them is what ``wait_stream(current)`` would not do.
        gc.collect()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._main):
            for _ in range(WARM_UPS - 1):
                for work in works:
                    work()
            with _waits_refused():
                for work in works:
                    work()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def _capture(self, work: Work) -> torch.cuda.CUDAGraph:
        """What ``torch.cuda.graph`` does, but an end that fails does not leave the allocator recording for ever."""
        graph, outer = torch.cuda.CUDAGraph(), sys.exc_info()[1]
        try:
            with torch.cuda.stream(self._main):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
        except BaseException as error:
            self._let_go_of(graph)
            self._failed = _told(_first_cause(error, outer))
            # No local name for the cause: with its traceback it would be a circle that holds this frame's memory.
            if isinstance(_first_cause(error, outer), Exception):
                raise CaptureError(self._failed) from error
            raise _first_cause(error, outer)  # noqa: B904 - an interrupt stays one
        return graph

    def _let_go_of(self, graph: torch.cuda.CUDAGraph) -> None:
        """Take back what ``capture_begin`` did to torch, as far as ``capture_end`` has not."""
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        end, release = (
            getattr(torch._C, f"_cuda_{name}", None) for name in ("endAllocateToPool", "releasePool")
        )
        if end is not None and release is not None:
            with suppress(RuntimeError):  # torch's end came so far, and the graph will release the pool
                end(index, self._pool)
                release(index, self._pool)
                _FAILED.append(graph)
        # The generator of random numbers believes in a capture until one ends well; it draws nothing till then.
        with suppress(RuntimeError), torch.cuda.stream(self._main):
            healing = torch.cuda.CUDAGraph()
            healing.capture_begin(capture_error_mode="thread_local")
            try:
                self._something.zero_()  # allocates nothing: memory may have been what failed
            finally:
                healing.capture_end()

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


def _something_on(device: torch.device) -> torch.Tensor:
    return torch.zeros(1, device=device)


_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed, for the life of the process: torch's allocator of pinned host memory goes on asking
them whether an allocation is theirs, at an address, and nothing that Python can reach makes it stop."""

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
    """Collect garbage before and after, not inside: freeing other tensors' memory is not allowed while recording.

    Nor does autocast keep anything: a weight that a network cast before would be read where it no longer is.
    """
    collects, caches = gc.isenabled(), torch.is_autocast_cache_enabled()
    gc.disable()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(caches)
        if collects:
            gc.enable()


_WAITS = "called a synchronizing CUDA operation"


@contextmanager
def _waits_refused() -> Iterator[None]:
    """CaptureError at the end of the block if an operation of torch's waited for the device in this thread.

    Found out before recording, because torch does not survive a recording that fails by it unharmed. Torch's mode
    "error" would raise in every thread that waits, also in those that may; so it warns, and the warnings of other
    threads go no further.
    """
    mine, seen = threading.get_ident(), []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
            if not str(message).startswith(_WAITS):
                shown(message, category, filename, lineno, *rest)
            elif threading.get_ident() == mine:
                seen.append(f"{filename}:{lineno}")

        warnings.showwarning = show  # type: ignore[assignment]
        warnings.filterwarnings("always", _WAITS)
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # torch calls it a prototype, once
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    if seen:
        raise CaptureError(f"it waits for the device, which cannot be captured, at {seen[0]}")


def _first_cause(error: BaseException, outer: BaseException | None) -> BaseException:
    """What went wrong first: leaving an invalid recording raises once more. ``outer`` was there before."""
    while error.__context__ is not None and error.__context__ is not outer:
        error = error.__context__
    return error


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


RECORDERS: dict[str, type[Recorder]] = {"cuda": CudaRecorder}
"""Device type -> what records there."""
