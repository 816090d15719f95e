"""Work recorded once and replayed on the same memory: CUDA graphs behind an interface that needs no GPU to test.

A work is a function without arguments that reads and writes tensors which stay where they are. What it allocates
lives in a pool of its recorder's, which holds it for as long as the recorder lives; replays allocate nothing.
"""

from __future__ import annotations

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
    def record(self, *works: Work) -> list[Work]:
        """Run the works in order to warm up, then record each; returns what replays them.

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
    go on calling CUDA. Replays run on the caller's current stream.
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
        self._main, self._side = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._used: torch.cuda.Stream | None = None
        self._nbytes = 0
        self._warm = False

    def record(self, *works: Work) -> list[Work]:
        """See ``Recorder.record``."""
        with torch.cuda.device(self._device):
            preload(self._device)  # loading a kernel is not allowed while recording
            try:
                self._warm_up(works)
            except torch.OutOfMemoryError as error:  # other recordings hold memory
                raise CaptureError(_first_cause(error)) from error
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            graphs = [self._capture(work) for work in works]
            self._nbytes += max(0, torch.cuda.memory_reserved() - before)
        return [graph.replay for graph in graphs]

    def _warm_up(self, works: tuple[Work, ...]) -> None:
        current = torch.cuda.current_stream()
        self._main.wait_stream(current)
        with torch.cuda.stream(self._main):
            for _ in range(1 if self._warm else WARM_UPS):
                for work in works:
                    work()
        current.wait_stream(self._main)
        self._warm = True

    def _capture(self, work: Work) -> torch.cuda.CUDAGraph:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        mode = "thread_local"
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._main, capture_error_mode=mode):
                work()
        except Exception as error:
            raise CaptureError(_first_cause(error)) from error
        finally:
            torch.cuda.set_stream(current)  # torch.cuda.graph leaves its own behind where a recording fails
        return graph

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


def _first_cause(error: BaseException) -> str:
    """The words of what went wrong first: leaving an invalid recording raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


RECORDERS: dict[str, type[Recorder]] = {"cuda": CudaRecorder}
"""Device type -> what records there."""
