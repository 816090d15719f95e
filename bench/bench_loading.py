"""Loading a checkpoint of the official CIFAR-10 network (107 M parameters) against ``torch.load`` of the same file.

    python -m bench.bench_loading            # writes random weights into a temporary folder, and removes them
    pytest bench/bench_loading.py            # the digits network, in one process, under pytest-benchmark

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
from typing import Any

import pytest
import torch

from bench.measured import measure as measure_here
from fastpure import Denoiser, load_denoiser
from fastpure.nets import CONFIGS

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


STATE_DICT, CHECKPOINT = "state dict", "training checkpoint"
SMALL = "ddpmpp-digits"


def write_files(folder: Path, network: str = "ddpmpp-cifar10") -> dict[str, Path]:
    """A plain state dict, and a training checkpoint (raw and averaged weights, two moments of Adam)."""
    weights = Denoiser.from_config(network).network.state_dict()
    parameters = list(weights.values())
    files = {STATE_DICT: folder / "weights.pth", CHECKPOINT: folder / "checkpoint_8.pth"}
    torch.save({name: value.contiguous() for name, value in weights.items()}, files[STATE_DICT])
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
    torch.save(content, files[CHECKPOINT])
    return files


def measure(path: Path, way: str) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), way],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(result.stdout)


def reference_configuration(network: str) -> dict[str, dict[str, Any]]:
    """What score_sde's code calls the settings of ``network``: only the official network is known without."""
    config = CONFIGS[network]
    same = {"scale_by_sigma": False, "normalization": "GroupNorm", "nonlinearity": "swish", "fir": False}
    return {
        "data": {"image_size": config.image_size, "num_channels": config.channels, "centered": True},
        "model": {
            **same,
            "name": "ncsnpp",
            "nf": config.nf,
            "ch_mult": list(config.ch_mult),
            "num_res_blocks": config.n_blocks,
            "attn_resolutions": list(config.attn_resolutions),
            "resblock_type": config.block,
            "dropout": config.dropout,
            "beta_min": 0.1,
            "beta_max": 20.0,
            "num_scales": 1000,
            "resamp_with_conv": True,
            "conditional": True,
            "skip_rescale": True,
            "progressive": "none",
            "progressive_input": "none",
            "attention_type": "ddpm",
            "embedding_type": "positional",
        },
        "training": {"sde": "vpsde", "continuous": True},
    }


@pytest.mark.parametrize("way", ["fastpure", "torch.load"])
@pytest.mark.parametrize("kind", [STATE_DICT, CHECKPOINT])
def test_loading(benchmark, tmp_path, kind, way):
    path = write_files(tmp_path, SMALL)[kind]
    ways = {
        "fastpure": lambda: load_denoiser(path, "score_sde", reference_configuration(SMALL)),
        "torch.load": lambda: torch.load(path, map_location="cpu", weights_only=True),
    }
    measure_here(benchmark, f"loading a {kind}, {SMALL}", ways[way])


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
