"""What a running evaluation shows: images, iterations, time left, robust accuracy so far with its interval."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TextIO, final

import numpy as np

from ..progress import LINE_PAUSE, Progress
from ..trackers import Tracker
from .protocol import Protocol
from .record import ImageRecord, Judged
from .run import Run
from .store import Seconds
from .summary import accuracy


@final
class EvaluationProgress:
    """Images, iterations, time left and accuracy so far, see `fastpure.progress.Progress`.

    Args:
        run: what is finished before this session.
        n_images: images this session's file will hold.
        n_iter: iterations of the attack where it says so, else 0.
        shown, stream, pause: as there.
    """

    def __init__(
        self,
        run: Run,
        n_images: int,
        n_iter: int,
        *,
        shown: bool = True,
        stream: TextIO | None = None,
        pause: float = LINE_PAUSE,
    ) -> None:
        self._protocol: Protocol = run.protocol
        self._attacked = run.identity["attack"] is not None
        self._which = "adversarial" if self._attacked else "clean"
        self._values = run.values(self._which).tolist() if len(run.positions) else []
        self._n_iter = n_iter
        self._bar = Progress(
            n_images,
            "images",
            done=len(self._values),
            doing="evaluating",
            note=self._accuracy(),
            fractions=True,
            shown=shown,
            stream=stream,
            pause=pause,
        )

    def tick(self, n_block: int, iteration: int) -> None:
        """The attack on a block of ``n_block`` images has done ``iteration`` + 1 iterations."""
        share = min((iteration + 1) / self._n_iter, 1.0) if self._n_iter else 0.0
        self._bar.to(len(self._values) + share * n_block, f"iteration {iteration + 1}")

    def finished(self, records: Sequence[ImageRecord]) -> None:
        """These images are in the file."""
        self._values += values_of(self._protocol, records, self._which)
        self._bar.to(float(len(self._values)), "evaluating", self._accuracy())

    def note(self, text: str) -> None:
        """Say something between the lines of the bar."""
        self._bar.say(text)

    def line(self) -> str:
        """One line of plain text: images, accuracy so far, time left."""
        return self._bar.line()

    def close(self) -> None:
        """Finish the bar's line."""
        self._bar.close()

    def _accuracy(self) -> str:
        name = "robust" if self._attacked else "clean"
        return f"{name} {accuracy(np.array(self._values))}" if self._values else f"{name} unknown yet"


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
