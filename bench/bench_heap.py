"""Freed memory kept for the process against glibc's default: processor time of a purification's exact gradient.

    python -m bench.bench_heap                       two sizes of CIFAR-10 and digits: three minutes on one thread
    pytest bench/bench_heap.py

What the allocator was told cannot be taken back, so that each way is a process of its own; they take turns. The figure
in ``docs/guides/large-runs.md`` is this command's.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from bench.measured import measure

WAYS = ("default", "kept")
SIZES = {"digits": (64, 12), "cifar10-small": (64, 4), "ddpmpp-cifar10": (2, 2)}
"""Images, and steps of the purification."""


@dataclass(frozen=True)
class Child:
    """A process that computes a gradient whenever it is asked to."""

    process: subprocess.Popen[str]

    def gradient(self) -> tuple[float, float, int]:
        """(seconds in the program, seconds in the system, page faults) of one gradient."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the measuring process has ended; why stands above")
        user, system, faults = line.split()
        return float(user), float(system), int(faults)


@contextmanager
def child(way: str, network: str) -> Iterator[Child]:
    """The process, warm; it ends with its input."""
    command = [sys.executable, "-m", "bench.bench_heap", "--serve", way, network]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        made = Child(process)
        for _ in range(2):
            made.gradient()
        yield made
        process.communicate()


def serve(way: str, network: str) -> None:
    """What a child does."""
    from fastpure.heap import keep_freed, user_chose

    if user_chose():
        raise SystemExit("unset MALLOC_..._ and GLIBC_TUNABLES first")
    if way == "kept" and not keep_freed():
        raise SystemExit("this C library is not glibc, or refuses")
    from bench.bench_threads import gradient

    batch, steps = SIZES[network]
    call = gradient(network, batch, steps)
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF)
        call()
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = (after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)
        print(*used, after.ru_minflt - before.ru_minflt, flush=True)


@pytest.mark.parametrize("way", WAYS)
def test_heap(benchmark, way):
    with child(way, "cifar10-small") as one:
        measure(benchmark, "gradient, cifar10-small", one.gradient)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    print(f"{'network':<16}{'way':<10}{'program s':>11}{'system s':>10}{'page faults':>13}{'of default':>12}")
    for network in options.networks:
        with ExitStack() as stack:
            children = {way: stack.enter_context(child(way, network)) for way in WAYS}
            turns = [{way: one.gradient() for way, one in children.items()} for _ in range(options.rounds)]
        for way in WAYS:
            user, system, faults = (statistics.median(turn[way][k] for turn in turns) for k in range(3))
            share = statistics.median(sum(turn[way][:2]) / sum(turn["default"][:2]) for turn in turns)
            print(
                f"{network:<16}{way:<10}{user:>11.3f}{system:>10.3f}{faults:>13,.0f}{share:>12.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
