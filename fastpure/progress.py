"""Progress of whatever takes long: a bar on a terminal and in a notebook, a line now and then elsewhere.

tqdm is imported when the first bar is drawn. Between two drawings a report costs a look at the clock, so that reporting
every iteration of an attack takes no time that one would notice.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO, final

BAR_PAUSE = 0.1
"""Seconds between two drawings of a bar."""

LINE_PAUSE = 15.0
"""Seconds between two lines where there is no bar: a log should stay readable."""


def on_terminal() -> bool:
    """Whether somebody looks at stderr: the command line shows bars there and nowhere else."""
    return sys.stderr is not None and sys.stderr.isatty()


def in_notebook() -> bool:
    """Whether this is a notebook's kernel, whose stderr is no terminal and shows bars all the same."""
    shell = sys.modules.get("IPython")
    current = None if shell is None else shell.get_ipython()
    return current is not None and "IPKernelApp" in current.config


@final
class Progress:
    """How much is done, of how much, what is being done, and the time left. A context manager.

    Args:
        total: how much there is to do; None if nobody knows.
        unit: of what, such as "images".
        done: what an earlier session did; it does not count for the time left.
        doing: what is being done, in a word or two.
        note: a number worth seeing, in words.
        fractions: whether parts of a unit are worth showing.
        shown: nothing is shown if False, and nothing is imported.
        stream: where to; stderr if None.
        pause: seconds between two lines where there is no bar.
    """

    def __init__(
        self,
        total: float | None,
        unit: str,
        *,
        done: float = 0.0,
        doing: str = "",
        note: str = "",
        fractions: bool = False,
        shown: bool = True,
        stream: TextIO | None = None,
        pause: float = LINE_PAUSE,
    ) -> None:
        self._total, self._unit, self._fractions, self._shown = total, unit, fractions, shown
        self._first = self.done = done
        self._doing, self._note, self._bar = doing, note, None
        if not shown:
            return
        self._stream = sys.stderr if stream is None else stream
        self._begun = time.monotonic()
        if self._stream.isatty() or (stream is None and in_notebook()):
            self._bar = self._drawn()
        self._pause = pause if self._bar is None else BAR_PAUSE
        self._due = self._begun + self._pause

    def _drawn(self) -> Any:
        from tqdm.auto import tqdm

        digits = ".1f" if self._fractions else ".0f"
        known = f"{{percentage:3.0f}}%|{{bar}}| {{n:{digits}}}/{{total:.0f}}"
        count = known if self._total else f"{{n:{digits}}}"
        left = "<{remaining}" if self._total else ""
        return tqdm(
            total=self._total,
            initial=self._first,
            desc=self._doing,
            bar_format=f"{{desc}} {count} {self._unit} [{{elapsed}}{left}{{postfix}}]",
            file=self._stream,
            dynamic_ncols=True,
            mininterval=0,
            miniters=0,
        )

    def to(self, done: float, doing: str | None = None, note: str | None = None) -> None:
        """So much is done; ``doing`` what, and ``note``, a number worth seeing, stay as they were if None."""
        self.done = done
        if doing is not None:
            self._doing = doing
        if note is not None:
            self._note = note
        if self._shown and (now := time.monotonic()) >= self._due:
            self._draw(now)

    def step(self, n: float = 1.0, doing: str | None = None) -> None:
        """``n`` more are done."""
        self.to(self.done + n, doing)

    def earlier(self, n: float = 1.0) -> None:
        """``n`` more turn out to have been done by an earlier session."""
        self._first += n
        if self._bar is not None:
            self._bar.initial += n
        self.step(n)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._shown:
            print(text, file=self._stream, flush=True)

    def told(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say``, or the bar in its place: it then shows what is being done."""
        return say if self._bar is None else self.doing

    def doing(self, text: str) -> None:
        """This is being done now: drawn at once, since it may take long."""
        self.to(self.done, text)
        if self._bar is not None:
            self._draw(time.monotonic())

    def telling(self, say: Callable[[str], None] | None) -> Callable[[str], None]:
        """``say``, or the bar in its place: it then shows what is being done, and counts it as a step."""
        if self._bar is None:
            return say or (lambda text: None)

        def tell(text: str) -> None:
            self.done += 0.0 if self._fresh else 1.0
            self._fresh = False
            self.doing(text)

        return tell

    _fresh = True
    """Whether nothing was told yet: what is told first is not done when it is told."""

    def line(self, now: float | None = None) -> str:
        """A line of plain text."""
        digits = ".1f" if self._fractions else ".0f"
        of = "" if self._total is None else f"/{self._total:.0f}"
        words = (f"{self.done:{digits}}{of} {self._unit}", self._note, self._left(now), self._doing)
        return "  ".join(word for word in words if word)

    def _left(self, now: float | None) -> str:
        if self._total is None:
            return ""
        passed = (time.monotonic() if now is None else now) - self._begun
        speed = (self.done - self._first) / max(passed, 1e-9)
        left = (self._total - self.done) / speed if speed > 0 else float("inf")
        if left > 1e8:
            return "time left unknown"
        return f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d} left"

    def _draw(self, now: float) -> None:
        self._due = now + self._pause
        if self._bar is None:
            print(self.line(now), file=self._stream, flush=True)
            return
        self._bar.set_description_str(self._doing, refresh=False)
        self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.update(self.done - self._bar.n)

    def close(self) -> None:
        """Draw the last state and finish the bar's line."""
        if self._bar is not None:
            self._draw(time.monotonic())
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
