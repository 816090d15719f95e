"""What a GPU does: the fused row against its copy bandwidth, and the exact gradient against checkpointing.

    python -m bench.gpu_figures OUT.jsonl [--seconds 180] [--status NAME=VALUE ...] [--tests JUNIT.xml]

One JSON object per line: first the environment (with commit and whatever --status and --tests report), then a row per
figure with median, least and largest value over the repeats. A figure that fails is a row with its error, and the
exit status is 1. `make gpu` calls this. Times are between CUDA events around a call, in one process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import fastpure as fp
from fastpure.baselines.plain_network import Cast, Loop, PlainDDPMpp
from fastpure.kernels import NoiseKeys, Stream, affine_row, affine_row_vjp, backend_report, philox_normal
from fastpure.nets import CONFIGS
from fastpure.reverse.graphs import FIRST_KEEPING
from fastpure.schedule import KERNEL_COLUMNS, KERNEL_WIDTH

Run = Callable[[], object]
COPY_BYTES = 1 << 30
STATES = {"1e5": (33, 3, 32, 32), "1e6": (326, 3, 32, 32), "1e8": (32768, 3, 32, 32)}
BATCHES, STEPS, DT = (1, 20, 64), 4, 1e-3
REPEATS, CALLS = 15, 10


def seconds(run: Run, calls: int, repeats: int = REPEATS) -> list[float]:
    """Seconds per call, for each repeat of ``calls`` calls; two turns before are not counted."""
    for _ in range(2):
        run()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) * 1e-3 / calls)
    return found


def row(name: str, unit: str, values: list[float], **more: Any) -> dict[str, Any]:
    return {
        "figure": name,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        **more,
    }


def machine() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What the card gives at best: bandwidth of a copy, rate of a large matrix product."""

    def copy() -> dict[str, Any]:
        a = torch.ones(COPY_BYTES // 4, device="cuda")
        b = torch.empty_like(a)
        return row("copy", "GB/s", [2e-9 * COPY_BYTES / t for t in seconds(lambda: b.copy_(a), CALLS)])

    def product(dtype: torch.dtype, size: int = 8192) -> dict[str, Any]:
        a = torch.randn(size, size, device="cuda", dtype=dtype)
        rates = [2e-12 * size**3 / t for t in seconds(lambda: a @ a, 3)]
        return row("matrix product", "TFLOP/s", rates, dtype=str(dtype))

    yield "copy", copy
    for dtype in (torch.bfloat16, torch.float32):
        yield f"matrix product {dtype}", lambda dtype=dtype: product(dtype)


def table(noise: bool, clip: bool) -> torch.Tensor:
    values = {
        "a": 1.01,
        "b": -0.25,
        "c": 0.1,
        "d": 0.3 * noise,
        "alpha": 0.9,
        "sigma": 0.43,
        "clip": float(clip),
    }
    matrix = torch.zeros(1, KERNEL_WIDTH)
    for name, value in values.items():
        matrix[0, KERNEL_COLUMNS.index(name)] = value
    return matrix.cuda()


def kernel_cases(size: str) -> dict[str, tuple[Run, float]]:
    """Name -> (call, bytes per element that have to move)."""
    shape = STATES[size]
    x, e = (torch.randn(shape, device="cuda") for _ in range(2))
    g, half = torch.randn(shape, device="cuda"), e.bfloat16()
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, e)]
    keys = NoiseKeys.make(1, list(range(shape[0])), device="cuda")
    step = torch.zeros(1, dtype=torch.int64, device="cuda")
    plain, noisy, clipped = table(False, False), table(True, False), table(True, True)
    vjp = {"x": None, "noise_pred": None, "want_guidance": True, "want_register": False}
    common: dict[str, Any] = {"step": step}
    return {
        "row": (lambda: affine_row(x, e, table=plain, noise=None, **common), 12),
        "row with guidance": (lambda: affine_row(x, e, g, table=plain, noise=None, **common), 16),
        "row with noise": (lambda: affine_row(x, e, table=noisy, noise=keys, **common), 12),
        "row with noise, clipped": (lambda: affine_row(x, e, table=clipped, noise=keys, **common), 12),
        "row with noise, bfloat16 output": (
            lambda: affine_row(x, half, table=noisy, noise=keys, **common),
            10,
        ),
        "row with noise, channels_last": (lambda: affine_row(*last, table=noisy, noise=keys, **common), 12),
        "transposed row": (lambda: affine_row_vjp(x, table=plain, **common, **vjp), 16),
        "normals": (lambda: philox_normal(keys, step, Stream.REVERSE, shape[1:]), 4),
        "torch.randn": (lambda: torch.randn(shape, device="cuda"), 4),
    }


def kernels() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for size, shape in STATES.items():
        names = list(kernel_cases("1e5"))
        for name in names:

            def measure(name: str = name, size: str = size, shape: tuple[int, ...] = shape) -> dict[str, Any]:
                run, width = kernel_cases(size)[name]
                times = seconds(run, CALLS)
                moved = width * torch.Size(shape).numel()
                rates = [moved * 1e-9 / t for t in times]
                return row(name, "GB/s", rates, elements=size, microseconds=statistics.median(times) * 1e6)

            yield f"{name} {size}", measure


def gradients() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Images times steps per second of the exact gradient and of purification, official size, random weights.

    Rows without "eager" replay CUDA graphs, and fail where these cannot be recorded.
    """
    denoiser = fp.Denoiser.from_config("ddpmpp-cifar10", seed=0).cuda()
    method = fp.methods.coup_unguided(t=STEPS * DT, dt=DT, clip_output=False)

    def ours(batch: int, memory: str, precision: str, backend: str = "graph") -> Run:
        purifier = fp.Purifier(denoiser, method, memory=memory, precision=precision, backend=backend)
        x = torch.rand(batch, 3, 32, 32, device="cuda")

        def run() -> torch.Tensor:
            leaf = x.clone().requires_grad_(True)
            return torch.autograd.grad(purifier(leaf).sum(), leaf)[0]

        for _ in range(FIRST_KEEPING):  # from this gradient on everything is replayed
            run()
        return run

    def purification(batch: int, precision: str, backend: str) -> Run:
        purifier = fp.Purifier(denoiser, method, precision=precision, backend=backend)
        x = torch.rand(batch, 3, 32, 32, device="cuda")
        return lambda: purifier(x)

    def checkpointed(batch: int, dtype: torch.dtype = torch.float32) -> Run:
        network = PlainDDPMpp(CONFIGS["ddpmpp-cifar10"]).eval()
        network.load_state_dict(denoiser.network.state_dict())
        x = torch.randn(batch, 3, 32, 32, device="cuda")
        noise = torch.randn(STEPS, 1, 3, 32, 32, device="cuda")
        plain = Cast(network.cuda(), dtype, channels_last=True)
        loop = Loop(plain, method.table(), noise, None, recompute=True)
        return lambda: loop.gradient(x, x)

    makers: dict[str, Callable[[int], Run]] = {
        "gradient, store, fp32": lambda batch: ours(batch, "store", "fp32"),
        "gradient, store, bf16": lambda batch: ours(batch, "store", "bf16"),
        "gradient, recompute, fp32": lambda batch: ours(batch, "recompute", "fp32"),
        "gradient, recompute, bf16": lambda batch: ours(batch, "recompute", "bf16"),
        "gradient, store, fp32, eager": lambda batch: ours(batch, "store", "fp32", "eager"),
        "gradient, store, bf16, eager": lambda batch: ours(batch, "store", "bf16", "eager"),
        "gradient, recompute, bf16, eager": lambda batch: ours(batch, "recompute", "bf16", "eager"),
        "purification, bf16": lambda batch: purification(batch, "bf16", "graph"),
        "purification, bf16, eager": lambda batch: purification(batch, "bf16", "eager"),
        "gradient, checkpointed loop, fp32": checkpointed,
        "gradient, checkpointed loop, bf16": lambda batch: checkpointed(batch, torch.bfloat16),
    }
    for batch in BATCHES:
        for name, make in makers.items():

            def measure(
                name: str = name, make: Callable[[int], Run] = make, batch: int = batch
            ) -> dict[str, Any]:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                times = seconds(make(batch), 1, repeats=5)
                rates = [batch * STEPS / t for t in times]
                # Recordings hold memory between calls that counts as reserved, not as allocated.
                memory = {
                    "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
                    "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
                }
                return row(name, "image-steps/s", rates, batch=batch, **memory)

            yield f"{name} {batch}", measure


def output_of(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment(statuses: list[str], tests: Path | None) -> dict[str, Any]:
    commit, changes = output_of("git", "rev-parse", "HEAD"), output_of("git", "status", "--porcelain")
    found: dict[str, Any] = {
        "commit": commit,
        "uncommitted_changes": None if changes is None else bool(changes),
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "extension": backend_report()["extension"],
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "status": dict(status.partition("=")[::2] for status in statuses),
    }
    if tests is not None and tests.exists():
        suites = ElementTree.parse(tests).getroot().iter("testsuite")
        counts = [
            {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
            for suite in suites
        ]
        found["tests"] = {key: sum(count[key] for count in counts) for key in counts[0]} if counts else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--status", action="append", default=[])
    parser.add_argument("--tests", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing to measure")
    begin, failed, copy = time.monotonic(), 0, None
    with options.out.open("w", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            print(json.dumps(line), file=file, flush=True)
            print(json.dumps(line), flush=True)

        write({"environment": environment(options.status, options.tests)})
        for group in (machine, kernels, gradients):
            for name, measure in group():
                if time.monotonic() - begin > options.seconds:
                    write({"figure": name, "skipped": f"{options.seconds:g} s were over"})
                    continue
                try:
                    with torch.no_grad() if group is not gradients else torch.enable_grad():
                        line = measure()
                except Exception as error:  # a figure that fails must not cost the others
                    line, failed = {"figure": name, "error": f"{type(error).__name__}: {error}"}, failed + 1
                copy = line.get("median") if name == "copy" else copy
                if group is kernels and copy and "median" in line:
                    line["share_of_copy"] = line["median"] / copy
                write(line)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
