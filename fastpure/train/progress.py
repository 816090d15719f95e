"""Progress of long runs: a bar on a terminal, plain lines elsewhere; a Ctrl-C that waits for the step."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO, final

from tqdm import tqdm


@final
class Progress:
    """Shows step, loss, speed and time left.

    Args:
        total, done: steps of the whole run, and of those before this session.
        stream: where to; a terminal gets a tqdm bar, anything else a line every ``pause`` seconds.
    """

    def __init__(self, total: int, done: int, *, stream: TextIO | None = None, pause: float = 15.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total, self._first, self._pause = total, done, pause
        self._started = self._shown = time.monotonic()
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(total=total, initial=done, unit="step", file=self._stream, dynamic_ncols=True)

    def update(self, step: int, loss: float | None) -> None:
        """``step`` steps are done; ``loss`` is the latest known one."""
        if self._bar is not None:
            if loss is not None:
                self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown < self._pause:
            return
        self._shown = now
        speed = (step - self._first) / (now - self._started)
        left = (self._total - step) / max(speed, 1e-9)
        shown = "" if loss is None else f"  loss {loss:.4f}"
        print(
            f"step {step}/{self._total}{shown}  {speed:.1f} steps/s  "
            f"{int(left) // 60}:{int(left) % 60:02d} left",
            file=self._stream,
            flush=True,
        )

    def close(self) -> None:
        """Finish the bar's line."""
        if self._bar is not None:
            self._bar.close()


@final
class StopRequest:
    """Whether the user asked to stop."""

    asked = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that no step is cut in two; a second one acts at once.

    Outside the main thread, where Python allows no signal handlers, signals keep their meaning.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        request.asked = True
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
