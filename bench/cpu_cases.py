"""One case of `python -m bench.cpu`: a workload in one precision, by everybody, in a process of its own.

    python -m bench.cpu_cases ROWS digits gradient fp32 --repeats 21 --modes default

Everybody's calls take turns, the processor's products with them; then each is called once more for its peak memory.
One row is appended to the file ROWS.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.rows import append
from fastpure.baselines import Processor, interleave
from fastpure.baselines.comparison import Cases, Networks
from fastpure.baselines.plain_network import COMPILE_MODES
from fastpure.baselines.processor import probes
from fastpure.baselines.timing import peak_megabytes

OURS, CHANNELS_LAST, NCHW, COMPILED = "fastpure", "plain, channels_last", "plain, NCHW", "torch.compile"
KINDS = ("purification", "gradient")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Workload:
    """What is purified.

    Fields:
        threads: None for one per core.
        repeats: measured turns; the shorter a call, the more of them.
    """

    name: str
    network: str
    batch: int
    steps: int
    threads: int | None
    repeats: int

    def __str__(self) -> str:
        threads = "a thread per core" if self.threads is None else "one thread"
        return f"{self.network}, B = {self.batch}, {self.steps} steps, {threads}"


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("official", "ddpmpp-cifar10", batch=2, steps=4, threads=None, repeats=7),
        Workload("small", "ddpmpp-cifar10-small", batch=16, steps=4, threads=1, repeats=11),
        Workload("digits", "ddpmpp-digits", batch=64, steps=6, threads=1, repeats=21),
    )
}


def calls(cases: Cases, kind: str, precision: str, modes: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Who computes, ours first; every loop keeps everything that its backward pass needs."""
    loops = {
        CHANNELS_LAST: cases.loop(precision),
        NCHW: cases.loop(precision, channels_last=False),
        **{f"{COMPILED} {mode}": cases.loop(precision, mode=mode) for mode in modes},
    }
    if kind == "purification":
        ours: Callable[[], object] = partial(cases.purification, cases.purifier(precision))
        return {OURS: ours} | {name: partial(cases.peer_purification, loop) for name, loop in loops.items()}
    ours = partial(cases.gradient, cases.purifier(precision, "store"))
    return {OURS: ours} | {name: partial(cases.peer_gradient, loop) for name, loop in loops.items()}


def measured(
    workload: Workload, kind: str, precision: str, modes: Sequence[str], repeats: int
) -> dict[str, Any]:
    """The row of a case, without what tells apart the runs of a file."""
    device, processor = torch.device("cpu"), Processor.here()
    torch.set_num_threads(workload.threads or processor.cores)
    cases = Cases(Networks(workload.network, device), workload.batch, workload.steps)
    flops = dict(zip(KINDS, cases.flops(), strict=True))[kind]
    everybody, failed = calls(cases, kind, precision, modes), {}
    for name in list(everybody):
        try:
            everybody[name]()
        except Exception as error:  # what torch.compile raises is of many kinds
            if not name.startswith(COMPILED):
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del everybody[name]
    products = {f"product: {probe.name}": probe for probe in probes(precision, device)}
    turns = everybody | {name: probe.run for name, probe in products.items()}
    timings = {timing.name: timing for timing in interleave(turns, repeats)}
    return {
        "threads": torch.get_num_threads(),
        "flops": flops,
        "cases": {
            name: asdict(timings[name]) | {"peak_mb": peak_megabytes(call, device)}
            for name, call in everybody.items()
        },
        "failed": failed,
        "products": [
            {"name": probe.name, "flops": probe.flops, "timing": asdict(timings[name])}
            for name, probe in products.items()
        ],
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def identity(
    workload: str, kind: str, precision: str, modes: Sequence[str], repeats: int, commit: str
) -> dict[str, Any]:
    """What a row must have in common with another to stand for it."""
    return {
        "workload": workload,
        "kind": kind,
        "precision": precision,
        "modes": list(modes),
        "repeats": repeats,
        "commit": commit,
        "torch": torch.__version__,
        "processor": str(Processor.here()),
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--modes", nargs="*", default=["default"], choices=COMPILE_MODES)
    parser.add_argument("--commit", default="unknown")
    options = parser.parse_args(words)
    case = (options.kind, options.precision, options.modes, options.repeats)
    row = measured(WORKLOADS[options.workload], *case)
    append(options.rows, identity(options.workload, *case, options.commit) | row)


if __name__ == "__main__":
    main(sys.argv[1:])
