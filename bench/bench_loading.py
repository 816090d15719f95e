"""Loading a checkpoint of the official CIFAR-10 network (107 M parameters) against ``torch.load`` of the same file.

    python -m bench.bench_loading            # writes random weights into a temporary folder, and removes them

Medians of turns that alternate in fresh processes, the file being in the page cache. Elapsed time and, because that
means little on a busy machine, processor time of the process, kernel included. Memory is the
largest resident set of a process above what it had before loading, memory-mapped pages of the file included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from fastpure import Denoiser

CHILD = """
import sys, time, torch, fastpure
torch.zeros(1)

def resident(kind):
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind)) / 1024

path, way = sys.argv[1:]
load = fastpure.load_denoiser if way == "fastpure" else lambda p: torch.load(p, map_location="cpu", weights_only=True)
before = resident("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
begin, worked = time.perf_counter(), time.process_time()
loaded = load(path)
seconds, worked = time.perf_counter() - begin, time.process_time() - worked
peak, after = (resident(kind) - before for kind in ("VmHWM:", "VmRSS:"))
print('{"seconds": %f, "cpu": %f, "peak": %f, "after": %f}' % (seconds, worked, peak, after))
"""


def write_files(folder: Path) -> dict[str, Path]:
    """A plain state dict, and a training checkpoint (raw and averaged weights, two moments of Adam)."""
    weights = Denoiser.from_config("ddpmpp-cifar10").network.state_dict()
    parameters = list(weights.values())
    files = {"state dict": folder / "weights.pth", "training checkpoint": folder / "checkpoint_8.pth"}
    torch.save({name: value.contiguous() for name, value in weights.items()}, files["state dict"])
    copies = [[value.contiguous().clone() for value in parameters] for _ in range(3)]
    content = {
        "optimizer": {
            "state": {
                i: {"exp_avg": a, "exp_avg_sq": b} for i, (a, b) in enumerate(zip(*copies[:2], strict=True))
            }
        },
        "model": {f"module.{name}": value.contiguous() for name, value in weights.items()},
        "ema": {"decay": 0.9999, "num_updates": 1, "shadow_params": copies[2]},
        "step": 1,
    }
    torch.save(content, files["training checkpoint"])
    return files


def measure(path: Path, way: str) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), way],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        for kind, path in write_files(Path(folder)).items():
            path.read_bytes()
            size = path.stat().st_size / 2**20
            results: dict[str, list[dict[str, float]]] = {"torch.load": [], "fastpure": []}
            for _ in range(turns):
                for way, found in results.items():
                    found.append(measure(path, way))
            print(f"{kind}, {size:.0f} MiB")
            median = {
                way: {key: statistics.median(result[key] for result in found) for key in found[0]}
                for way, found in results.items()
            }
            for way, values in median.items():
                print(
                    f"  {way:<12}{values['seconds']:7.3f} s, {values['cpu']:6.3f} s of CPU "
                    f"({values['cpu'] / median['torch.load']['cpu']:.2f} of torch.load's)   "
                    f"peak {values['peak']:6.0f} MiB ({values['peak'] / size:.2f} of the file), "
                    f"after {values['after']:6.0f} MiB"
                )


if __name__ == "__main__":
    main()
