"""What a GPU does, in groups: each is a stage of `make gpu` (bench/gpu.py).

    python -m bench.gpu_figures headlines ROWS.jsonl [--seconds 100] [--only bf16]
    python -m bench.gpu_figures headlines ROWS.jsonl --quick       digits size on the CPU, to see that it runs

environment: what runs here, the extension (built if none is there that serves this GPU), its row against the host's.
smoke: recorded steps against launched ones, gradients against kept float64 values (bench/gpu_smoke.py).
headlines: gradients and purifications, ours and by the plain loop, and what the card gives at best.
kernels: the fused row and the noise against the card's copy.
norms: GroupNorm+SiLU against PyTorch's; sweep: neighbours of its tile rules (bench/bench_group_norm.py).
compiled: the plain network under torch.compile, everything kept.

Every figure is appended to ROWS.jsonl as soon as it is there, with the median, least and largest value over the
repeats. One that fails is a row with its error, its traceback is printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from bench import bench_group_norm, gpu_smoke
from bench.gpu_cases import Loops, Sizes, kernel_cases, table
from bench.rows import append
from fastpure.kernels import NoiseKeys, affine_row, backend_report, use_backend
from fastpure.purify.precision import PRECISIONS

Row = dict[str, Any]
Figures = Iterator[tuple[str, Callable[[], Row]]]
ROOT = Path(__file__).resolve().parents[1]


def seconds(run: Callable[[], object], calls: int, sizes: Sizes, repeats: int | None = None) -> list[float]:
    """Seconds per call, for each repeat of ``calls`` calls; two turns before are not counted."""
    for _ in range(2):
        run()
    return [_once(run, calls, sizes) / calls for _ in range(repeats or sizes.repeats)]


def _once(run: Callable[[], object], calls: int, sizes: Sizes) -> float:
    if not sizes.cuda:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def row(figure: str, unit: str, values: list[float], **more: Any) -> Row:
    return {
        "figure": figure,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        **more,
    }


def ceilings(sizes: Sizes) -> Figures:
    """What the card gives at best: bandwidth of a copy, rate of a large matrix product."""

    def copy() -> Row:
        a = torch.ones(sizes.copy_bytes // 4, device=sizes.device)
        b = torch.empty_like(a)
        moved = 2e-9 * sizes.copy_bytes
        return row("copy", "GB/s", [moved / t for t in seconds(lambda: b.copy_(a), 10, sizes)])

    def product(precision: str) -> Row:
        size, dtype = sizes.product, PRECISIONS[precision].network
        a = torch.randn(size, size, device=sizes.device, dtype=dtype)
        with PRECISIONS[precision].environment(torch.device(sizes.device)):
            rates = [2e-12 * size**3 / t for t in seconds(lambda: a @ a, 3, sizes)]
        return row("matrix product", "TFLOP/s", rates, precision=precision)

    yield "copy", copy
    for precision in ("bf16", "tf32", "fp32"):
        yield f"matrix product, {precision}", partial(product, precision)


def measured(loops: Loops, figure: str, who: str, precision: str, batch: int, guided: bool = False) -> Row:
    """Images times steps per second, memory beyond what was in use before, and the time of the first call."""
    sizes, _ = loops.sizes, loops.networks  # built before memory is looked at
    if who.startswith("torch.compile"):
        _forget_compiled()
    memory = _Memory(sizes)
    run, more = loops.case(figure, who, precision, batch, guided)
    begin = time.perf_counter()
    run()
    memory.wait()
    first = time.perf_counter() - begin
    for _ in range(2):  # warm-ups of recordings and of torch's CUDA graphs take three calls in all
        run()
    times = seconds(run, 1, sizes)
    name = f"guided {figure}" if guided else figure
    rates = [batch * loops.steps / t for t in times]
    labels = {"who": who, "precision": precision, "batch": batch, "steps": loops.steps}
    ms = 1e3 * statistics.median(times)
    return row(name, "image-steps/s", rates, **labels, ms=ms, first_s=first, **memory.peak(), **more())


def _forget_compiled() -> None:
    """Release the graphs and pools of peers measured before; torch compiles one function for 8 shapes at most."""
    import torch._dynamo

    torch._dynamo.reset()


class _Memory:
    """Peak of device memory from here on. Recordings hold memory between calls that counts as reserved only."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        gc.collect()
        if sizes.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.allocated, self.reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    def wait(self) -> None:
        if self.sizes.cuda:
            torch.cuda.synchronize()

    def peak(self) -> Row:
        if not self.sizes.cuda:
            return {}
        return {
            "peak_gb": (torch.cuda.max_memory_allocated() - self.allocated) / 1e9,
            "reserved_gb": (torch.cuda.max_memory_reserved() - self.reserved) / 1e9,
        }


def headlines(sizes: Sizes) -> Figures:
    loops = Loops(sizes)

    def figure(name: str, who: str, precision: str, batch: int, guided: bool = False) -> Figures:
        label = f"{'guided ' * guided}{name}, {who}, {precision}, B = {batch}"
        yield label, partial(measured, loops, name, who, precision, batch, guided)

    first, *others = sizes.batches
    for batch in sizes.batches:
        yield from figure("gradient", "fastpure, store", "bf16", batch)
        yield from figure("gradient", "checkpoint", "bf16", batch)
        yield from figure("purification", "fastpure", "bf16", batch)
        if batch == first:
            yield from ceilings(sizes)
    yield from figure("gradient", "fastpure, store", "bf16", first, guided=True)
    yield from figure("purification", "fastpure", "bf16", first, guided=True)
    for precision in ("tf32", "fp32"):
        for batch in (*others, first):
            yield from figure("gradient", "fastpure, store", precision, batch)
            yield from figure("gradient", "checkpoint", precision, batch)
    for batch in sizes.batches:
        for who in ("checkpoint, NCHW", "keep everything", "fastpure, recompute", "fastpure, store, eager"):
            yield from figure("gradient", who, "bf16", batch)
        for who in ("plain loop", "fastpure, eager"):
            yield from figure("purification", who, "bf16", batch)
        yield from figure("gradient", "keep everything, NCHW", "bf16", batch)
    yield "digits gradient against float64, fp64", partial(gpu_smoke.against_kept, sizes, "fp64")


def compiled(sizes: Sizes) -> Figures:
    """Each mode compiles anew, so the order is that of value: the middle batch comes last."""
    loops = Loops(sizes)
    largest, middle, one = sizes.batches
    wanted = [
        ("gradient", "reduce-overhead", one),
        ("gradient", "default", largest),
        ("gradient", "max-autotune", largest),
        ("gradient", "max-autotune", one),
        ("gradient", "reduce-overhead", middle),
        ("gradient", "max-autotune", middle),
        ("purification", "reduce-overhead", one),
        ("purification", "default", largest),
        ("purification", "max-autotune", largest),
    ]
    for figure, mode, batch in wanted:
        who = f"torch.compile {mode}"
        yield f"{figure}, {who}, bf16, B = {batch}", partial(measured, loops, figure, who, "bf16", batch)


def kernels(sizes: Sizes) -> Figures:
    """GB/s that a call must move at least; the share is of a copy measured beside it."""
    reached: list[float] = []

    def copy() -> Row:
        found = next(ceilings(sizes))[1]()
        reached.append(found["median"])
        return found

    def measure(name: str, size: str) -> Row:
        run, width = kernel_cases(sizes, size)[name]
        times = seconds(run, 10, sizes)
        moved = width * torch.Size(sizes.states[size]).numel()
        more = {"elements": size, "microseconds": statistics.median(times) * 1e6}
        found = row(name, "GB/s", [moved * 1e-9 / t for t in times], **more)
        return found | ({"share_of_copy": found["median"] / reached[0]} if reached else {})

    yield "copy", copy
    names = list(kernel_cases(sizes, next(iter(sizes.states))))
    for size in reversed(sizes.states):
        for name in names:
            yield f"{name}, {size}", partial(measure, name, size)


def norms(sizes: Sizes) -> Figures:
    """One figure per site, precision and direction."""
    for site, label, direction in bench_group_norm.calls(sizes.norm_networks, sizes.norm_dtypes):
        name = f"group norm, {site.name}, {label}, {direction}"
        yield (
            name,
            partial(bench_group_norm.measured_row, site, label, direction, sizes.norm_batch, sizes.device),
        )


def sweep(sizes: Sizes) -> Figures:
    """The rules' neighbours at the sites where most of the time goes."""
    for name, site, label in bench_group_norm.sweeps(sizes.norm_networks, sizes.norm_dtypes[:1]):
        label_ = f"sweep, {name}, {site.name}, {label}"
        yield (
            label_,
            partial(bench_group_norm.swept_row, name, site, label, sizes.norm_batch, sizes.device),
        )


def environment(sizes: Sizes, commit: str | None) -> Figures:
    def described() -> Row:
        found: Row = {
            "environment": True,
            "commit": commit,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "extension": backend_report()["extension"],
        }
        if sizes.cuda:
            found |= {
                "gpu": torch.cuda.get_device_name(),
                "capability": list(torch.cuda.get_device_capability()),
                "driver": _driver(),
            }
        return found

    def bits() -> Row:
        x, e = (torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(k)) for k in range(2))
        found = []
        for device, backend in (("cpu", "host"), (sizes.device, "cuda" if sizes.cuda else "host")):
            keys = NoiseKeys.make(1, [4, 5, 6], device=device)
            step = torch.zeros(1, dtype=torch.int64, device=device)
            with use_backend(backend):
                rows = table(True, True, device)
                found.append(
                    affine_row(x.to(device), e.to(device), table=rows, step=step, noise=keys)[0].cpu()
                )
        if not torch.equal(*found):
            raise AssertionError(
                f"the row differs from the host's by {float((found[0] - found[1]).abs().max()):.3g}"
            )
        return {"figure": "row against the host's bits", "equal": True}

    if sizes.cuda:
        yield "extension", partial(_extension, ROOT)
    yield "environment", described
    yield "row against the host's bits", bits


@cache
def _driver() -> str | None:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _extension(root: Path) -> Row:
    """Use the extension that is there; build one for this GPU only where it does not serve it."""
    question = "from fastpure.kernels.extension import reason_against_cuda as r; print(r() or '')"

    def reason() -> str:  # asked in another process, because this one would remember the first answer
        asked = subprocess.run([sys.executable, "-c", question], cwd=root, capture_output=True, text=True)
        return asked.stdout.strip() or asked.stderr.strip()

    against = reason()
    if against:
        print(f"building the extension, because {against}", flush=True)
        major, minor = torch.cuda.get_device_capability()
        wanted = {"FASTPURE_EXT": "1", "FASTPURE_CUDA": "1", "FASTPURE_CUDA_ARCHS": f"{major}{minor}"}
        words = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(words, cwd=root, env=os.environ | wanted, check=True)
        if still := reason():
            raise RuntimeError(f"the extension was built here and does not serve this GPU: {still}")
    return {"figure": "extension", "built_here": bool(against), "reason": against or None}


GROUPS: dict[str, Callable[[Sizes], Figures]] = {
    "smoke": gpu_smoke.figures,
    "headlines": headlines,
    "kernels": kernels,
    "norms": norms,
    "sweep": sweep,
    "compiled": compiled,
}


def measure_all(
    figures: Figures, rows: Path, stage: str, limit: float = float("inf"), only: str = "", quick: bool = False
) -> int:
    """Append a row for each figure whose name contains ``only``; how many failed. Quick rows say that they are."""
    begin, failed = time.monotonic(), 0
    for name, measure in figures:
        if only not in name:
            continue
        if time.monotonic() - begin > limit:
            line: Row = {"figure": name, "skipped": f"{limit:g} s were over"}
        else:
            try:
                line = measure()
            except Exception as error:  # a figure that fails must not cost the others
                traceback.print_exc()
                line, failed = {"figure": name, "error": f"{type(error).__name__}: {error}"}, failed + 1
        line = {"stage": stage, "at": round(time.monotonic() - begin, 2), **line}
        if quick:
            line["quick"] = True
        append(rows, line)
        print(line, flush=True)
    return failed


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=["environment", *GROUPS])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no figure is begun later")
    parser.add_argument("--only", default="", help="figures whose name contains this")
    parser.add_argument("--commit", help="with environment: what is measured")
    parser.add_argument("--quick", action="store_true", help="digits size on the CPU")
    options = parser.parse_args(words)
    sizes = Sizes.quick() if options.quick else Sizes()
    if sizes.cuda and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing to measure (--quick runs on the CPU)")
    group = GROUPS.get(options.group, lambda sizes: environment(sizes, options.commit))
    asked = (options.rows, options.group, options.seconds, options.only, options.quick)
    return min(measure_all(group(sizes), *asked), 1)


if __name__ == "__main__":
    sys.exit(main())
