"""GroupNorm+SiLU by our kernels against PyTorch's own, same layout and precision, forward and backward.

    python -m bench.bench_group_norm                         table (needs a CUDA device)
    python -m bench.bench_group_norm --batch 64 --json out.jsonl
    python -m bench.bench_group_norm --sweep                 neighbours of every rule in triton_support.py
    TRITON_INTERPRET=1 python -m bench.bench_group_norm      no timing: shows on the CPU that the bench still runs
    pytest bench/bench_group_norm.py                         the same calls on the CPU under pytest-benchmark

What PyTorch's side is stands in group_norm_calls.py. Times are of captured graphs over rotating buffers larger than
the cache: no launch overhead counts, and nothing is found in the cache. GB/s counts the bytes that one fused pass
moves at least.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from bench.group_norm_calls import Buffers, by_torch, error, ours
from bench.machine_code import DTYPES, SITES, Site, site_work
from bench.measured import measure as measure_by_clock
from fastpure.kernels import registry, triton_support, use_backend
from fastpure.kernels.group_norm_silu import impl_triton

GOAL = 1.3


def measure(calls: list[Callable[[], Any]], repeats: int = 25, device: str = "cuda") -> list[float]:
    """Microseconds per call of a captured graph that makes every call once (on a CPU: of the calls); one per replay."""
    if device == "cpu":
        times = []
        for _ in range(2):
            start = time.perf_counter()
            for call in calls:
                call()
            times.append((time.perf_counter() - start) * 1e6 / len(calls))
        return times
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return times


def rotation(site: Site, dtype: torch.dtype, batch: int, device: str = "cuda") -> list[Buffers]:
    """Enough sets of buffers to exceed twice the cache, 32 at most."""
    first = Buffers.make(site, dtype, batch, device)
    count = 2
    if device != "cpu":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        count = min(32, max(2, 1 + 2 * cache // first.bytes_moved("forward")))
    return [first, *(Buffers.make(site, dtype, batch, device) for _ in range(count - 1))]


def calls(networks: Sequence[str] | None, dtypes: Sequence[str]) -> Iterator[tuple[Site, str, str]]:
    """Site, dtype and direction of every row; ``networks`` None means all."""
    for site in SITES:
        if networks is None or site.network in networks:
            for label in (label for label in site.dtypes if label in dtypes):
                for direction in ("forward", "backward"):
                    yield site, label, direction


def measured_row(site: Site, label: str, direction: str, batch: int, device: str = "cuda") -> dict[str, Any]:
    """Ours against PyTorch's at one site."""
    sets = rotation(site, DTYPES[label], batch, device)
    one = measure([ours(buffers, direction) for buffers in sets], device=device)
    other = measure([by_torch(buffers, direction) for buffers in sets], device=device)
    errors = error(site, DTYPES[label], direction, device)
    return {
        "bench": "group_norm",
        "figure": "group norm",
        "site": site.name,
        "dtype": label,
        "direction": direction,
        "batch": batch,
        "microseconds": round(statistics.median(one), 2),
        "spread": [round(quantile, 2) for quantile in statistics.quantiles(one, n=5)[::3]],
        "torch_microseconds": round(statistics.median(other), 2),
        "speedup": round(statistics.median(other) / statistics.median(one), 2),
        "gpu": torch.cuda.get_device_name() if device != "cpu" else None,
        "torch": torch.__version__,
        "bandwidth_gb_s": round(sets[0].bytes_moved(direction) / statistics.median(one) / 1e3, 1),
        "error": errors[0],
        "torch_error": errors[1],
    }


@pytest.mark.parametrize("whose", [ours, by_torch], ids=["fastpure", "torch"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "site", [site for site in SITES if site.network == "digits"], ids=lambda site: site.name
)
def test_site(benchmark, site, direction, whose):
    buffers = Buffers.make(site, torch.float32, 20, "cpu")
    group = f"GroupNorm+SiLU, {site.name}, {direction}, B = 20, CPU"
    measure_by_clock(benchmark, group, whose(buffers, direction), calls=50)


def sweeps(networks: Sequence[str] | None, dtypes: Sequence[str]) -> Iterator[tuple[str, Site, str]]:
    """Rule, site and dtype of every sweep where that rule decides, those of the backward pass first."""
    rules = triton_support.RULES[triton_support.ARCHITECTURES[-1]]
    for name in sorted(list(rules)[:6], key=lambda name: not name.startswith("backward")):
        for site, label, direction in calls(networks, dtypes):
            if direction == name.split("_")[0]:
                yield name, site, label


def swept_row(name: str, site: Site, label: str, batch: int, device: str = "cuda") -> dict[str, Any]:
    """Time a rule's neighbours at a site: the rule as it is and the three best, in microseconds."""
    architecture = triton_support.architecture(torch.device(device))
    rules, direction = triton_support.RULES[architecture], name.split("_")[0]
    rule = rules[name]
    sets = rotation(site, DTYPES[label], batch, device)
    found = {}
    try:
        for candidate in [rule, *(other for other in dict.fromkeys(neighbours(rule)) if other != rule)]:
            _use(rules, name, candidate)
            if name not in _kernels(site, label, direction, architecture):
                if candidate == rule:
                    break  # another rule decides here
                continue
            found[candidate] = statistics.median(measure([ours(b, direction) for b in sets], 9, device))
    finally:
        _use(rules, name, rule)
    best = sorted(found, key=lambda candidate: found[candidate])[:3]
    return {
        "figure": "sweep",
        "rule": name,
        "site": site.name,
        "dtype": label,
        "batch": batch,
        "now": found.get(rule),
        "best": [{"microseconds": round(found[one], 2), **dataclasses.asdict(one)} for one in best],
    }


def neighbours(rule: triton_support.TileRule) -> Iterator[triton_support.TileRule]:
    """Rules that differ in one or two numbers by a factor of two."""
    for scale in (0.5, 1, 2):
        for per_thread in (rule.per_thread // 2, rule.per_thread, 2 * rule.per_thread):
            for run in (rule.run // 2, rule.run, 2 * rule.run):
                sizes = {"most": max(rule.most, int(rule.good * scale)), "good": int(rule.good * scale)}
                if rule.most == rule.good:
                    sizes["most"] = sizes["good"]
                yield dataclasses.replace(rule, **sizes, per_thread=per_thread, run=run)


def _use(rules: dict[str, triton_support.TileRule], name: str, rule: triton_support.TileRule) -> None:
    rules[name] = rule
    registry.forget()
    impl_triton.forward_plan.cache_clear()
    impl_triton.backward_plan.cache_clear()


def _kernels(site: Site, label: str, direction: str, architecture: int) -> list[str]:
    """The names of the kernels that run."""
    (work,) = (one for one in site_work(site, label, architecture) if one.direction == direction)
    return [launch.kernel.__name__ for launch in work.launches]


def smoke() -> None:
    """Every part that needs no device, at the smallest site."""
    site = next(site for site in SITES if site.network == "digits")
    with use_backend("triton"):
        for direction in ("forward", "backward"):
            found = error(site, torch.float32, direction, "cpu")
            print(f"{site.name}, fp32, {direction}: error {found[0]:.1e}, torch {found[1]:.1e}")
            if found[0] > 1e-5:
                raise SystemExit("the kernels are wrong")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--json", help="append rows to this file")
    parser.add_argument("--sweep", action="store_true", help="time other tile sizes instead")
    options = parser.parse_args(words)
    reason = triton_support.unavailable("cuda", torch.float32)
    if triton_support.load().interpreted:
        return smoke()
    if reason is not None:
        print(f"bench_group_norm needs a CUDA device and Triton: {reason}")
        return None
    if options.sweep:
        for name, site, label in sweeps(None, options.dtypes):
            found = swept_row(name, site, label, options.batch)
            if found["now"] is not None:
                print(f"{name}, {site.name}, {label}: now {found['now']:.2f} us")
                for best in found["best"]:
                    print(f"    {best}")
        return None
    print(
        f"{'site':<28}{'dtype':<6}{'direction':<10}{'us':>9}{'torch us':>10}{'speedup':>9}{'GB/s':>8}  (goal {GOAL})"
    )
    for site, label, direction in calls(None, options.dtypes):
        row = measured_row(site, label, direction, options.batch)
        print(
            f"{row['site']:<28}{row['dtype']:<6}{row['direction']:<10}{row['microseconds']:>9.2f}"
            f"{row['torch_microseconds']:>10.2f}{row['speedup']:>9.2f}{row['bandwidth_gb_s']:>8.0f}"
        )
        if options.json:
            with open(options.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
