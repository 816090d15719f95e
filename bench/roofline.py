"""A model of one reverse step and of its adjoint: operations, bytes and launches, against what a device can do.

    python -m bench.roofline                                   # H200, official network, every plan and precision
    python -m bench.roofline --device here --measure           # this machine: measure its rates, predict, compare
    python -m bench.roofline --batch 1 20 64 --json out.json

Nothing is timed to count: the program is traced with fake tensors, so that a GPU is described on a machine that has
none. An operation takes the longer of its arithmetic at the device's matrix rate and its bytes at the device's copy
bandwidth (no cache is assumed: every tensor comes from memory and goes back). A captured graph pays a small gap for
every kernel; eager execution takes the longer of that and the host's cost of launching. This is a bound to aim at and
a list of where the time must go, not a measurement: rates marked "assumed" were not measured by us.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.devices import DEVICES, DTYPES, Device, measured_here
from bench.workloads import Workload, workload
from fastpure.nets import frozen, fused, products

#: Operations that move nothing: they only make another view, or allocate.
# fmt: off
FREE = frozenset((
    "_unsafe_view", "alias", "as_strided", "chunk", "detach", "device", "empty", "empty_like",
    "empty_strided", "expand", "lift_fresh", "new_empty", "new_empty_strided", "permute", "reshape",
    "select", "slice", "split", "split_with_sizes", "squeeze", "sym_size", "t", "transpose",
    "unbind", "unsqueeze", "view",
))
# fmt: on


@dataclass
class Program:
    """What a traced function does: per kind of operation, [calls, floating-point operations, bytes]."""

    ops: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def launches(self) -> int:
        return sum(len(calls) for calls in self.ops.values())

    @property
    def flops(self) -> float:
        return sum(flops for calls in self.ops.values() for flops, _ in calls)

    @property
    def bytes(self) -> float:
        return sum(moved for calls in self.ops.values() for _, moved in calls)

    def seconds(self, device: Device, precision: str) -> Counter[str]:
        """Time of every kind of operation on the device, launches apart."""
        rate, found = device.matrix[precision], Counter[str]()
        for name, calls in self.ops.items():
            found[name] = sum(max(flops / rate, moved / device.bandwidth) for flops, moved in calls)
        return found


class _Counting(TorchDispatchMode):
    """Records every operation that reaches a back end: a kernel or more each."""

    def __init__(self) -> None:
        super().__init__()
        self.program = Program()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in FREE:
            flops = 0.0
            if func.overloadpacket in flop_registry:
                flops = float(flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out))
            tensors = {
                id(leaf): leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)
            }
            moved = float(sum(leaf.numel() * leaf.element_size() for leaf in tensors.values()))
            self.program.ops[name].append((flops, moved))
        return out


def trace(run: Callable[[], object]) -> Program:
    """The program of ``run``, which works on fake tensors."""
    with _Counting() as counting:
        run()
    return counting.program


PATHS = ("gpu", "host", "plain")
"""Which of our kernels the traced program uses: Triton's fused blocks, the host's, or none."""


@contextmanager
def fake_tensors(path: str = "gpu") -> Iterator[None]:
    """Inside, tensors have shapes but no memory, convolutions are torch's, and the kernels are those of ``path``."""
    computes = products.computes if path == "host" else lambda dtype: True  # a GPU multiplies in 16 bits
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(frozen, "can_pack", return_value=False),
        mock.patch.object(fused, "can_map", return_value=False),
        mock.patch.object(fused, "serves", return_value=path == "gpu"),
        mock.patch.object(frozen, "fused_on_host", return_value=path == "host"),
        mock.patch.object(fused, "fused_on_host", return_value=path == "host"),
        mock.patch.object(products, "computes", computes),
    ):
        yield


@dataclass(frozen=True)
class Plan:
    """How often a step's programs run for a gradient: ``"store"`` 1 + 1, ``"recompute"`` 2 + 1."""

    name: str
    extra_forward: int


PLANS = (Plan("store", 0), Plan("recompute", 1))


@dataclass(frozen=True)
class Prediction:
    """One row of the table; times in milliseconds per step of the whole batch."""

    network: str
    guidance: str | None
    plan: str
    precision: str
    batch: int
    gflop: float
    gbytes: float
    launches: int
    matrix_ms: float
    memory_ms: float
    graph_ms: float
    eager_ms: float
    kept_gb_per_step: float

    @property
    def rate(self) -> float:
        """Image-steps of exact gradient per second, captured."""
        return 1e3 * self.batch / self.graph_ms

    @property
    def matrix_share(self) -> float:
        """Time that the arithmetic alone would need, as a share of the captured time."""
        return self.matrix_ms / self.graph_ms


def predict(load: Workload, plan: Plan, device: Device) -> tuple[Prediction, Counter[str]]:
    """Bound for one gradient step of ``load``, and the time of each kind of operation."""
    forward, adjoint = trace(load.forward), trace(load.adjoint)
    programs = [adjoint] + [forward] * plan.extra_forward
    spent: Counter[str] = Counter()
    for program in programs:
        spent.update(program.seconds(device, load.precision))
    flops, launches = sum(p.flops for p in programs), sum(p.launches for p in programs)
    busy = sum(spent.values()) + launches * device.gap
    matrix = flops / device.matrix[load.precision]
    row = Prediction(
        load.network,
        load.guidance,
        plan.name,
        load.precision,
        load.batch,
        gflop=flops / 1e9,
        gbytes=sum(p.bytes for p in programs) / 1e9,
        launches=launches,
        matrix_ms=1e3 * matrix,
        memory_ms=1e3 * (sum(spent.values()) - matrix),
        graph_ms=1e3 * busy,
        eager_ms=1e3 * max(busy, launches * device.launch),
        kept_gb_per_step=load.kept_bytes() / 1e9,
    )
    return row, spent


HEADER = (
    f"{'precision':<10}{'plan':<11}{'B':>4}{'GFLOP':>9}{'GB':>8}{'launches':>10}{'matrix ms':>11}{'memory ms':>11}"
    f"{'captured':>10}{'eager':>9}{'img-steps/s':>13}{'matrix':>8}{'kept GB':>9}"
)


def line(row: Prediction) -> str:
    return (
        f"{row.precision:<10}{row.plan:<11}{row.batch:>4}{row.gflop:>9.0f}{row.gbytes:>8.2f}{row.launches:>10}"
        f"{row.matrix_ms:>11.2f}{row.memory_ms:>11.2f}{row.graph_ms:>10.2f}{row.eager_ms:>9.2f}{row.rate:>13.0f}"
        f"{100 * row.matrix_share:>7.0f}%{row.kept_gb_per_step:>9.2f}"
    )


def rand_autoattack_hours(rate: float, images: int = 512, steps: int = 100) -> float:
    """Hours for AutoAttack's rand mode: APGD-CE and APGD-DLR, 100 iterations, EOT 20, exact gradients."""
    return images * 2 * 100 * 20 * steps / rate / 3600


def table(
    device: Device, network: str, guidance: str | None, batches: list[int], path: str
) -> list[Prediction]:
    """Print the table for a device and return its rows."""
    print(
        f"{network}{' with ' + guidance if guidance else ''} on {device.name}: one step of the exact gradient"
    )
    print(f"{device}\n{HEADER}")
    rows, best = [], (0.0, None, Counter[str]())
    for precision in device.matrix:
        for batch in batches:
            for plan in PLANS:
                with fake_tensors(path):
                    load = workload(network, guidance, batch, DTYPES[precision], precision)
                    row, spent = predict(load, plan, device)
                rows.append(row)
                print(line(row), flush=True)
                if row.rate > best[0]:
                    best = (row.rate, row, spent)
    rate, row, spent = best
    if row is not None:
        whole = sum(spent.values())
        parts = ", ".join(f"{name} {100 * value / whole:.0f} %" for name, value in spent.most_common(6))
        print(
            f"\nbest: {row.precision}, {row.plan}, B = {row.batch}: {rate:.0f} image-steps/s; time goes to {parts}"
        )
        print(
            f"AutoAttack rand mode, 512 images, 100 steps: {rand_autoattack_hours(rate):.1f} h at that rate"
        )
    return rows


def compare_here(network: str, guidance: str | None, batch: int, device: Device, repeats: int = 3) -> None:
    """Prediction against measurement on this machine's CPU, float32, the store plan."""
    with fake_tensors("host"):
        row, _ = predict(workload(network, guidance, batch, torch.float32, "fp32"), PLANS[0], device)
    load = workload(network, guidance, batch, torch.float32, "fp32")
    load.adjoint()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        load.adjoint()
        seconds.append(time.perf_counter() - begin)
    measured = 1e3 * sorted(seconds)[len(seconds) // 2]
    print(
        f"\n{network}, B = {batch}, fp32, store: predicted {row.eager_ms:.0f} ms, measured {measured:.0f} ms, "
        f"ratio {measured / row.eager_ms:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=[*DEVICES, "here"], default="h200")
    parser.add_argument("--network", default="ddpmpp-cifar10")
    parser.add_argument(
        "--guidance", help="a classifier's configuration, e.g. resnet-digits: adds COUP's guidance"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 20, 64, 256])
    parser.add_argument(
        "--path", choices=PATHS, help="kernels to model (default: gpu; host with --device here)"
    )
    parser.add_argument(
        "--measure", action="store_true", help="with --device here: also run one step and compare"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    here = options.device == "here"
    device = measured_here() if here else DEVICES[options.device]
    rows = table(
        device, options.network, options.guidance, options.batch, options.path or ("host" if here else "gpu")
    )
    if options.measure:
        if not here:
            parser.error("--measure needs --device here")
        compare_here(options.network, options.guidance, options.batch[0], device)
    if options.json:
        found = [{**asdict(row), "image_steps_per_s": row.rate} for row in rows]
        options.json.write_text(json.dumps({"device": asdict(device), "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
