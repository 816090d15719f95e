"""How many threads a computation on the host gets: by its work, and never more than the process has cores."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from .errors import whole
from .neighbours import watched
from .openmp import gnu_runtime

WORK_PER_THREAD = 15e6
"""Floating-point operations of one layer (as `layer_work` counts them) for each thread.

Measured on two idle cores, gradients of a step, time on one thread by that on two: the digits network at 8 images
(5e6) 1.0, 16 (11e6) 1.0, 32 (21e6) 1.04, 48 (32e6) 1.15, 64 (43e6) 1.35; cifar10-small at 1 image (51e6) 1.1,
2 (1e8) 1.3, 16 (8e8) 1.75; the official CIFAR-10 size at 2 images (2e9) 1.8. Below two shares the second thread gains
nothing, and beside another busy process it costs. Where threads meet once per pass (the digits as a program) gradients
gain 1.15 at 2 images (4e7), 1.3 at 8, 1.7 at 64; with the digits classifier as a guide they lose at any of these.
"""


def limits(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> dict[str, int]:
    """What bounds the number of threads of this process, by name; each at least 1.

    Args:
        environ: where OMP_NUM_THREADS and OMP_THREAD_LIMIT are looked up; values that are no numbers count for nothing,
            as in the runtime.
        root: of the file system with the control groups.
    """
    found = {"torch.get_num_threads()": torch.get_num_threads()}
    if hasattr(os, "sched_getaffinity"):
        found["cores it may run on"] = len(os.sched_getaffinity(0))
    else:
        found["cores of the machine"] = os.cpu_count() or 1
    quota = _quota(root)
    if quota is not None:
        found["the container's quota"] = math.ceil(quota)
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        first = environ.get(name, "").split(",")[0].strip()
        if first.isdigit() and int(first) > 0:
            found[name] = int(first)
    return {name: max(number, 1) for name, number in found.items()}


def told() -> int | None:
    """The number of threads that somebody told torch; None where it has all that the process may use."""
    found = limits()
    number = found.pop("torch.get_num_threads()")
    return number if number < min(found.values()) else None


def available() -> int:
    """Threads that a computation of this process may use: the smallest of `limits`."""
    return min(limits().values())


def share(workers: int, cores: int | None = None) -> int:
    """Threads for each of ``workers`` processes beside each other; at least 1.

    Args:
        workers: their number, at least 1.
        cores: that they share; ``available()`` if None.

    Raises:
        ValueError: fewer than one worker or core.
    """
    cores = available() if cores is None else cores
    return max(whole("cores", cores, 1) // whole("workers", workers, 1), 1)


def share_of_hosts(workers: int, hosts: Iterable[float]) -> int:
    """Threads for each of ``workers`` processes on hosts with so many cores each, so that all find room; at least 1.

    Raises:
        ValueError: fewer than one worker.
    """
    whole("workers", workers, 1)
    whole_cores = [int(cores) for cores in hosts]
    sizes = range(max(whole_cores, default=1), 1, -1)
    return next((n for n in sizes if sum(cores // n for cores in whole_cores) >= workers), 1)


def layer_work(
    networks: Iterable[nn.Module], pixels: int, in_one: Callable[[nn.Module], bool] = lambda network: False
) -> float:
    """Floating-point operations for one image of a middling layer of the largest of ``networks``.

    Threads meet after every layer; not so in networks that run ``in_one`` go, of which all layers are counted.

    Counted as if every kernel met all ``pixels`` of the image. Layers further down meet fewer, with more channels, so
    that this is an order of magnitude; that is what the choice of a number of threads needs. Without convolutions the
    matrices are counted, on patches of two by two.
    """
    return max((_work(network, pixels, in_one(network)) for network in networks), default=0.0)


def _work(network: nn.Module, pixels: int, together: bool) -> float:
    shapes = {id(weight): weight.shape for weight in network.parameters() if weight.dim() > 1}.values()
    kernels = [shape.numel() for shape in shapes if len(shape) > 2]
    if kernels:
        return 2.0 * pixels * sum(kernels) / (1 if together else len(kernels))
    matrices = [shape.numel() for shape in shapes]
    return 2.0 * max(pixels // 4, 1) * sum(matrices) / len(matrices) if matrices else 0.0


def suited(work: float, upper: int) -> int:
    """Threads, 1 to ``upper``, for layers of so many floating-point operations.

    The same for the same work, whatever else the machine does: results may depend on it in their last bits, as torch's
    convolutions and products do.
    """
    return max(min(upper, int(work // WORK_PER_THREAD)), 1)


@contextlib.contextmanager
def computing(work: float | None = None) -> Iterator[None]:
    """Torch and the extension compute inside with a number of threads that suits layers of ``work`` operations.

    None: with as many as are available. The caller's number (``torch.set_num_threads``) is an upper limit, and comes
    back at the end; where it is 1 nothing happens. Holds for this thread, forward and backward, since torch
    differentiates on the host in the thread that asks; takes microseconds.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    upper = _available(before)
    number = upper if work is None else suited(work, upper)
    with watched():
        if number == before:
            yield
            return
        take = _setter()
        take(number)
        try:
            yield
        finally:
            take(before)


@functools.cache
def _setter() -> Callable[[int], object]:
    """Sets the number of threads of the calling thread.

    Torch's own call also decides for every thread of the process that has not used torch yet, for good. Without it MKL
    keeps to a number that was set by ``torch.set_num_threads``, for its products alone.
    """
    runtime = gnu_runtime()
    return torch.set_num_threads if runtime is None else runtime.omp_set_num_threads


def _available(told: int) -> int:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else told
    return max(min(told, affinity, _lasting()), 1)


@functools.cache
def _lasting() -> int:
    """What a process is told once: the container's quota and the environment."""
    changing = ("torch.get_num_threads()", "cores it may run on", "cores of the machine")
    return min((n for name, n in limits().items() if name not in changing), default=1 << 30)


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the control groups of this process allow; None without a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        if controllers == "":
            found += [_unified(folder) for folder in _upwards(root / "sys/fs/cgroup", path)]
        elif "cpu" in controllers.split(","):
            for mounted in {controllers, "cpu", "cpu,cpuacct"}:
                found += [_older(folder) for folder in _upwards(root / "sys/fs/cgroup" / mounted, path)]
    return min((quota for quota in found if quota is not None), default=None)


def _upwards(mount: Path, path: str) -> list[Path]:
    """The group's folder and all above it: any of them limits. In a container ``path`` may be the host's."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _unified(folder: Path) -> float | None:
    """Version 2: "max 100000", or microseconds of time in a period."""
    words = _words(folder / "cpu.max")
    return None if len(words) != 2 else _ratio(*words)


def _older(folder: Path) -> float | None:
    """Version 1: two files, the quota -1 where there is none."""
    words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    return None if len(words) != 2 else _ratio(*words)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0):
        return None
    return int(quota) / int(period)
