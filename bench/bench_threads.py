"""A busy neighbour, and Ray workers beside each other: what sharing the cores costs a purification's exact gradient.

    python -m bench.bench_threads                              all sizes, 4 steps: about 4 minutes on 2 cores
    python -m bench.bench_threads --networks digits --plain    with torch's own choice of threads and waiting too
    python -m bench.bench_threads --above --others             on a machine with other work (Linux, root): see below
    python -m bench.bench_threads --ray                        one process against four Ray workers (needs Ray)
    pytest bench/bench_threads.py                              the digits size under pytest-benchmark

The neighbour is a process that only spins; it is stopped and continued, so that turns with and without it alternate.
Each network and policy is measured in a process of its own, because runtimes read how threads wait when they are
loaded: "imported" is a program that imports the package, "command" one that the command line starts, "plain" torch as
it is. Beside the seconds stands what other processes took of the cores meanwhile. ``--above`` takes it from them in
idle turns, which then run with real-time priority. Where others keep a core busy anyway, ``--others`` makes them the
neighbour.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from fastpure.neighbours import PATIENCE
from fastpure.openmp import POLICIES, choose_policy

SIZES = {"digits": 64, "cifar10-small": 16, "ddpmpp-cifar10": 2}
GOAL = 2.2
RAY_GOAL = 1.15
MEASURED = ("imported", "command", "plain")
SPIN = "while True: pass"


def gradient(network: str, batch: int, steps: int) -> Callable[[], object]:
    """The exact gradient of a purification."""
    import torch

    import fastpure as fp
    from fastpure.zoo import DENOISERS

    bundled = network in DENOISERS
    denoiser = fp.load_denoiser(network) if bundled else fp.Denoiser.from_config(network)
    purifier = fp.Purifier(denoiser, fp.methods.coup_unguided(t=steps * 1e-3, dt=1e-3))
    x = torch.rand(batch, *purifier.image_shape, generator=torch.Generator().manual_seed(0))

    def call() -> object:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(purifier(leaf).square().sum(), leaf)

    return call


@dataclass(frozen=True)
class Neighbour:
    """A process that only spins."""

    process: subprocess.Popen[bytes]

    def spin(self, busy: bool) -> None:
        """Spin from now on, or sleep."""
        self.process.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)

    def seconds(self) -> float:
        """Its processor seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def neighbour() -> Iterator[Neighbour]:
    """A neighbour, asleep at first."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    process.send_signal(signal.SIGSTOP)
    try:
        yield Neighbour(process)
    finally:
        process.kill()
        process.wait()


def _busy_seconds() -> float:
    """Processor seconds of the whole machine so far."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _priority(real_time: bool) -> None:
    for thread in os.listdir("/proc/self/task"):
        policy, level = (os.SCHED_RR, 1) if real_time else (os.SCHED_OTHER, 0)
        os.sched_setscheduler(int(thread), policy, os.sched_param(level))


def turn(call: Callable[[], object], seconds: float, beside: Neighbour) -> tuple[list[float], float]:
    """Seconds of the calls of one turn, and how many cores others than us and the neighbour used meanwhile."""
    times: list[float] = []
    begin, used, machine = time.perf_counter(), time.process_time() + beside.seconds(), _busy_seconds()
    while not times or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    passed = time.perf_counter() - begin
    ours = time.process_time() + beside.seconds() - used
    return times, max(_busy_seconds() - machine - ours, 0.0) / passed


def measure(
    network: str, batch: int, steps: int, turns: int, seconds: float, above: bool, spin: bool
) -> dict[str, float]:
    """Median seconds of a gradient, idle and beside the neighbour, and cores that others used in both."""
    call = gradient(network, batch, steps)
    found: dict[bool, list[float]] = {False: [], True: []}
    others: dict[bool, list[float]] = {False: [], True: []}
    with neighbour() as beside:
        call()
        for _ in range(turns):
            for busy in (False, True):
                if above:
                    _priority(real_time=not busy)
                beside.spin(busy and spin)
                # An idle machine is one that has been idle for a while, and so is a busy one.
                time.sleep(1.5 * PATIENCE if not busy else 0.2)
                call()
                times, elsewhere = turn(call, seconds, beside)
                found[busy] += times
                others[busy].append(elsewhere)
    return {
        "idle": statistics.median(found[False]),
        "busy": statistics.median(found[True]),
        "mean": statistics.mean(found[True]),
        "others_idle": statistics.mean(others[False]),
        "others_busy": statistics.mean(others[True]),
    }


def _environment(policy: str) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name not in POLICIES}
    if policy == "command":
        choose_policy(environ)
    return environ


def alone(policy: str, network: str, options: argparse.Namespace) -> dict[str, float]:
    """`measure` in a process of its own."""
    batch = str(SIZES[network])
    settings = [
        str(options.steps),
        str(options.turns),
        str(options.seconds),
        str(int(options.above)),
        str(int(not options.others)),
    ]
    words = [sys.executable, "-m", "bench.bench_threads", "--case", policy, network, batch, *settings]
    result = subprocess.run(words, env=_environment(policy), capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


def case(policy: str, network: str, *settings: str) -> None:
    """What the process of `alone` does."""
    from fastpure import threads
    from fastpure.purify import precision

    batch, steps, turns, seconds, above, spin = (float(word) for word in settings)
    managed = mock.patch.object(precision, "computing", return_value=nullcontext())
    with managed if policy == "plain" else nullcontext():
        figures = measure(network, int(batch), int(steps), int(turns), seconds, bool(above), bool(spin))
    print(json.dumps({**figures, "cores": threads.available()}))


def neighbours(options: argparse.Namespace) -> None:
    """The table."""
    policies = MEASURED if options.plain else MEASURED[:2]
    print(f"exact gradient, {options.steps} steps, median seconds; goal: busy / idle at most {GOAL}")
    print(
        f"{'network':<16}{'batch':>6}  {'process':<10}{'idle':>8}{'busy':>8}{'ratio':>7}   other processes' cores"
    )
    for network in options.networks:
        for policy in policies:
            f = alone(policy, network, options)
            ratio = f["busy"] / f["idle"]
            others = f"{f['others_idle']:.2f} idle, {f['others_busy']:.2f} busy"
            seconds = f"{f['idle']:>8.3f}{f['busy']:>8.3f}{ratio:>7.2f}"
            print(f"{network:<16}{SIZES[network]:>6}  {policy:<10}{seconds}   {others}", flush=True)


def ray_workers(workers: int, images: int) -> None:
    """One process against Ray workers: seconds of attack and judging for ``images`` images, without starting up."""
    try:
        import ray
    except ImportError:
        print("Ray is not installed (pip install 'fastpure[ray]'): left out")
        return
    import fastpure as fp
    from fastpure.data import digits

    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    defense = fp.Defense(fp.Purifier(denoiser, fp.methods.coup_unguided(t=0.1, dt=0.01)), classifier)
    attack = fp.attacks.PGD(norm="Linf", eps=0.1, n_iter=5, eot_iter=2, batch_size=64)

    def seconds(n: int, folder: str, **engine: object) -> float:
        out = Path(folder) / f"{n}-{'-'.join(map(str, engine.values()))}.sqlite"
        begin = time.perf_counter()
        data = digits("test").subset(n)
        fp.evaluate(
            defense, data, attack, fp.protocols.fresh(2), out, batch_size=32, progress=False, **engine
        )
        return time.perf_counter() - begin

    def work(folder: str, **engine: object) -> float:
        # Whatever starting costs is in both.
        return seconds(2 * images, folder, **engine) - seconds(images, folder, **engine)

    with tempfile.TemporaryDirectory() as folder:
        seconds(64, folder, engine="local")
        one = work(folder)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            many = work(folder, engine="ray", workers=workers)
        finally:
            ray.shutdown()
    print(f"digits, PGD, {images} images, seconds without starting up")
    print(f"one process {one:.2f}, {workers} Ray workers {many:.2f}")
    print(f"ratio {many / one:.2f} (goal {RAY_GOAL})")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "neighbour"])
def test_gradient(benchmark, busy):
    benchmark.group = "exact gradient, digits, B = 64, 4 steps"
    call = gradient("digits", SIZES["digits"], 4)
    with neighbour() as beside:
        beside.spin(busy)
        benchmark.pedantic(call, rounds=5, warmup_rounds=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="least length of a turn")
    parser.add_argument("--plain", action="store_true", help="torch's own choice of threads and waiting too")
    parser.add_argument("--above", action="store_true", help="idle turns take the cores from other processes")
    parser.add_argument("--others", action="store_true", help="other processes are the neighbour")
    parser.add_argument("--ray", action="store_true", help="Ray workers instead of a neighbour")
    parser.add_argument("--workers", type=int, default=4, help="Ray workers")
    parser.add_argument("--images", type=int, default=224, help="attacked by Ray workers; at most 250")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        case(*options.case)
    elif options.ray:
        ray_workers(options.workers, options.images)
    else:
        neighbours(options)


if __name__ == "__main__":
    main()
