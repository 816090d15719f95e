"""The OpenMP runtime that torch has brought into the process, and how long its threads spin before they sleep.

Torch's parallel loops, and through torch's runtime those of the extension, end at a barrier. GNU's runtime spins
there for milliseconds. That is fastest on an idle machine. Beside one other busy process two of the threads soon
share a core, and each of the many small loops of a network lasts until the scheduler takes the core away from the
one that only waits: a gradient then takes twenty times as long.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SPINS = 3000
"""Turns that a thread started from the command line spins before it sleeps, 60 microseconds or so.

Measured on two idle cores, gradients of a step, against the default (300000): 1000 turns cost the digits network (64
images) 20 %, 3000 and more cost none of the networks anything. Beside a busy neighbour fewer are better, but no number
serves both; `fastpure.neighbours` sees to that.
"""

POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how threads wait. Runtimes read them when they are loaded, as torch is imported."""


def choose_policy(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let threads spin for a short time only, unless the user said how they wait; before torch is imported."""
    if not any(name in environ for name in POLICIES):
        environ["GOMP_SPINCOUNT"] = str(SPINS)
        environ["KMP_BLOCKTIME"] = "1"  # milliseconds, for LLVM's and Intel's runtimes; their default is 200


def policy(environ: Mapping[str, str] = os.environ) -> str:
    """What decides how threads wait, in words."""
    ours = {"GOMP_SPINCOUNT": str(SPINS), "KMP_BLOCKTIME": "1"}
    told = {name: environ[name] for name in POLICIES if name in environ}
    listed = ", ".join(f"{name}={value}" for name, value in told.items())
    if told == ours:
        return f"{listed} (set by the command line)"
    return f"{listed} (set by the user)" if told else "the runtime's default"


def user_chose(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the user said how threads wait; then it stays that way."""
    return policy(environ).endswith("(set by the user)")


@functools.cache
def gnu_runtime() -> ctypes.CDLL | None:
    """GNU's runtime, if that is the one torch computes with; None otherwise, and where nobody can tell. Loads torch."""
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # Looked up through torch's own library: other packages bring runtimes of their own under the same names.
        runtime = ctypes.CDLL(str(library))
    except OSError:
        return None
    # Intel's and LLVM's have GNU's entry points too, but other rules of waiting.
    gnu = hasattr(runtime, "GOMP_parallel") and not hasattr(runtime, "kmp_set_blocktime")
    return runtime if gnu and hasattr(runtime, "omp_get_num_procs") else None


class Crowd:
    """Sleeping threads that make GNU's runtime hold the process for crowded, so that all its threads hardly spin.

    The runtime has no call for that, but a documented rule (GOMP_SPINCOUNT in its manual): while there are more threads
    of its own than cores, waiting ones spin 100 turns only. Numbers of threads, and with them all results, stay as they
    are. Coming and going takes less than a millisecond.
    """

    def __init__(self, runtime: ctypes.CDLL) -> None:
        self._leave, self._there = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(runtime,), name="fastpure-crowd", daemon=True)
        self._thread.start()
        self._there.wait()

    def _run(self, runtime: ctypes.CDLL) -> None:
        # Each thread that opens a parallel region gets a team of its own, which lives as long as it does.
        nothing = ctypes.cast(runtime.omp_get_num_procs, ctypes.c_void_p)
        runtime.GOMP_parallel(nothing, None, runtime.omp_get_num_procs() + 1, 0)
        self._there.set()
        self._leave.wait()

    def leave(self) -> None:
        """End them."""
        self._leave.set()
        self._thread.join()
