"""What a running evaluation shows: images, iterations, time left, robust accuracy so far with its interval."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO, final

import numpy as np
from tqdm import tqdm

from ..trackers import Tracker
from .protocol import Protocol
from .record import ImageRecord, Judged
from .run import Run
from .store import Seconds
from .summary import accuracy


@final
class Progress:
    """A bar on a terminal, a line every ``pause`` seconds elsewhere.

    Args:
        run: what is finished before this session.
        n_images: images this session's file will hold.
        n_iter: iterations of the attack where it says so, else 0.
    """

    def __init__(
        self, run: Run, n_images: int, n_iter: int, *, stream: TextIO | None = None, pause: float = 15.0
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._protocol: Protocol = run.protocol
        self._attacked = run.identity["attack"] is not None
        self._which = "adversarial" if self._attacked else "clean"
        self._values = run.values(self._which).tolist() if len(run.positions) else []
        self._n_images, self._n_iter, self._pause = n_images, n_iter, pause
        self._first, self._started, self._shown = len(self._values), time.monotonic(), time.monotonic()
        self._bar: Any = None
        if self._stream.isatty():
            form = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(
                total=n_images, initial=self._first, bar_format=form, file=self._stream, dynamic_ncols=True
            )
            self._postfix()

    def tick(self, n_block: int, iteration: int) -> None:
        """The attack on a block of ``n_block`` images has done ``iteration`` + 1 iterations."""
        share = min((iteration + 1) / self._n_iter, 1.0) if self._n_iter else 0.0
        self._show(len(self._values) + share * n_block, f"iteration {iteration + 1}")

    def finished(self, records: Sequence[ImageRecord]) -> None:
        """These images are in the file."""
        self._values += values_of(self._protocol, records, self._which)
        if self._bar is not None:
            self._postfix()
        self._show(float(len(self._values)), "")

    def note(self, text: str) -> None:
        """Say something between the lines of the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Finish the bar's line."""
        if self._bar is not None:
            self._bar.close()

    def line(self, done: float, now: float) -> str:
        """One line of plain text: images, share, accuracy so far, time left."""
        speed = (done - self._first) / max(now - self._started, 1e-9)
        left = (self._n_images - done) / speed if speed > 0 else float("inf")
        remaining = "time left unknown"
        if left < 1e8:
            remaining = f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d} left"
        return f"{done:.1f}/{self._n_images} images  {self._accuracy()}  {remaining}"

    def _accuracy(self) -> str:
        name = "robust" if self._attacked else "clean"
        return f"{name} {accuracy(np.array(self._values))}" if self._values else f"{name} unknown yet"

    def _postfix(self) -> None:
        self._bar.set_postfix_str(self._accuracy(), refresh=False)

    def _show(self, done: float, doing: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(doing or "evaluating", refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown >= self._pause:
            self._shown = now
            print(f"{self.line(done, now)}  {doing}".rstrip(), file=self._stream, flush=True)


def values_of(protocol: Protocol, records: Sequence[ImageRecord], which: str) -> list[float]:
    """How far each of these images counts as correct under ``protocol``; ``which``: "clean" or "adversarial"."""
    y = np.array([record.label for record in records])
    clean = np.stack([record.judged["clean"].predicted for record in records])
    logits = _stacked([record.judged[which] for record in records])
    if which == "clean":
        return list(protocol.clean_values(clean, y, logits).tolist())
    adversarial = np.stack([record.judged["adversarial"].predicted for record in records])
    own = [np.nan if record.verdict is None else float(record.verdict) for record in records]
    return list(protocol.robust_values(clean, adversarial, y, np.array(own), logits).tolist())


@final
class Tracked:
    """Accuracies so far and time spent, sent to a tracker after every block; its step is the number of images.

    Args:
        run: what is finished before this session.
        tracker: where to.
    """

    def __init__(self, run: Run, tracker: Tracker) -> None:
        self._tracker, self._protocol = tracker, run.protocol
        kinds = ("clean", "adversarial") if run.identity["attack"] is not None else ("clean",)
        self._values = {which: run.values(which).tolist() if len(run.positions) else [] for which in kinds}
        self._seconds = sum(run.seconds().values())

    def finished(self, records: Sequence[ImageRecord], seconds: Seconds) -> None:
        """These images are in the file."""
        self._seconds += seconds.clean + seconds.attack + seconds.judging
        shown: dict[str, float | None] = {"seconds": self._seconds}
        for which, values in self._values.items():
            values += values_of(self._protocol, records, which)
            shown[f"accuracy/{which}"] = float(np.mean(values))
        self._tracker.log(shown, len(self._values["clean"]))


def _stacked(judged: Sequence[Judged]) -> np.ndarray | None:
    kept = [one.logits for one in judged if one.logits is not None]
    return np.stack(kept) if len(kept) == len(judged) else None


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, which batch schedulers send, act like Ctrl-C; only where Python allows signal handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
