"""Notices that other processes want the cores too, and lets waiting threads sleep as long as they do.

Inside ``watched()`` a thread of ours looks twenty times a second how often the process was thrown off a core. On an
idle machine that happens a few times a second, beside one busy process a hundred times or more. Nothing in the
environment is changed, and no result: only how long threads spin (see `fastpure.openmp`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from . import openmp

PERIOD = 0.05
"""Seconds between two looks; each takes microseconds."""

MOST_CORES = 64
"""On more cores nothing is done: a neighbour takes one of many, and sleepers are woken one after the other."""

CROWDED, CALM = 60.0, 20.0
"""Involuntary switches per second from which on the cores are shared, and below which they are not.

Measured on two cores: up to 7 on an idle machine; beside a busy process 107 and more with spinning threads, 1900 and
more with sleeping ones.
"""

PATIENCE = 1.0
"""Seconds that it must stay calm before threads spin again, and that the watcher stays after its last user."""


class Watcher:
    """Watches while somebody computes.

    Args:
        switches: the process's involuntary context switches so far.
        crowd: makes threads sleep at once; what it returns ends that.
        pause: waits for a number of seconds.
        clock: seconds.
    """

    def __init__(
        self,
        switches: Callable[[], int],
        crowd: Callable[[], openmp.Crowd],
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._switches, self._crowd, self._pause, self._clock = switches, crowd, pause, clock
        self._lock = threading.Lock()
        self._users, self._left = 0, 0.0
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether its thread is there."""
        return self._thread is not None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The process is watched inside; any number of threads may be inside."""
        with self._lock:
            self._users += 1
            if self._thread is None:
                thread = threading.Thread(target=self.run, name="fastpure-neighbours", daemon=True)
                # Where no thread can be had (at the interpreter's end, say) one computes unwatched.
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._left = self._clock()

    def run(self) -> None:
        """Watch until nobody has computed for a while."""
        crowd: openmp.Crowd | None = None
        seen, since = self._switches(), self._clock()
        calm_from = since
        while not self._ended():
            self._pause(PERIOD)
            now, switches = self._clock(), self._switches()
            rate = (switches - seen) / max(now - since, 1e-9)
            seen, since = switches, now
            if rate >= CALM:
                calm_from = now
            if rate >= CROWDED and crowd is None:
                with contextlib.suppress(RuntimeError):  # no more threads to be had
                    crowd = self._crowd()
            elif crowd is not None and now - calm_from >= PATIENCE:
                crowd.leave()
                crowd = None
        if crowd is not None:
            crowd.leave()

    def _ended(self) -> bool:
        with self._lock:
            ended = self._users == 0 and self._clock() - self._left >= PATIENCE
            if ended:
                self._thread = None
            return ended


def _involuntary_switches() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _new() -> Watcher | None:
    """A watcher where it can do something: GNU's runtime, POSIX, and a user who did not say how threads wait."""
    runtime = None if openmp.user_chose() or os.name != "posix" else openmp.gnu_runtime()
    if runtime is None or runtime.omp_get_num_procs() > MOST_CORES:
        return None
    return Watcher(_involuntary_switches, lambda: openmp.Crowd(runtime))


_watcher: Watcher | None = None
_known = False


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _known, _watcher
    _known, _watcher = False, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def watched() -> contextlib.AbstractContextManager[None]:
    """While the block lasts, threads that wait sleep whenever other processes want the cores. Takes microseconds."""
    global _known, _watcher
    if not _known:
        _watcher, _known = _new(), True
    return contextlib.nullcontext() if _watcher is None else _watcher.watching()


def effect() -> str:
    """What `watched` does in this process, in words, or why nothing."""
    watched()
    if _watcher is not None:
        return "threads sleep while other processes want the cores"
    if openmp.user_chose():
        return "left as the user set it"
    if openmp.gnu_runtime() is None:
        return "unchanged beside other processes, since torch does not use GNU's OpenMP runtime here"
    return f"unchanged beside other processes on more than {MOST_CORES} cores"
