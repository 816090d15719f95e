"""The GPU kernels' machine code as a table, without a GPU: registers, spills, shared memory, occupancy, accesses.

    python -m bench.machine_code                 print the table
    python -m bench.machine_code --write         also replace bench/results/machine_code.md and .json
    python -m bench.machine_code --only forward  kernels whose name contains a word

Needs Triton (any machine; not under TRITON_INTERPRET=1); CUDA sources are added where nvcc is found. The test
tests/kernels/test_machine_code.py fails on spills, on atomics, on narrow accesses where wide ones are meant, and
when the table is older than the kernels.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import cuda_code
from bench.cubin import WARP, KernelCode, occupancy, read_cubin
from fastpure.kernels.group_norm_silu import impl_triton as norm
from fastpure.kernels.pointwise import impl_triton as pointwise
from fastpure.kernels.triton_support import ARCHITECTURES, OPTIONS, Launch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BATCH = 20
SCALE = 0.5**0.5
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class Site:
    """A place in a network where a normalisation stands: channels, those of the skip tensor, image size."""

    network: str
    channels: int
    skip: int
    size: int
    groups: int = 32
    resample: int = 0
    dtypes: tuple[str, ...] = ("bf16", "fp32")

    @property
    def name(self) -> str:
        behind = {0: "", norm.UP: ", up", norm.DOWN: ", down"}[self.resample]
        skip = f"+{self.skip}" if self.skip else ""
        return f"{self.network} {self.size}x{self.size}x{self.channels}{skip}{behind}"


SITES = (
    Site("cifar10", 128, 0, 32, dtypes=("bf16", "fp32", "fp16")),
    Site("cifar10", 128, 128, 32),
    Site("cifar10", 256, 128, 32),
    Site("cifar10", 128, 0, 32, resample=norm.DOWN),
    Site("cifar10", 256, 0, 16),
    Site("cifar10", 256, 256, 16),
    Site("cifar10", 256, 0, 16, resample=norm.UP),
    Site("cifar10", 256, 256, 8),
    Site("cifar10", 256, 256, 4),
    Site("digits", 16, 0, 8, groups=4, dtypes=("fp32",)),
    Site("digits", 32, 32, 4, groups=16, dtypes=("fp32",)),
    Site("adm256", 256, 0, 256, dtypes=("bf16", "fp16")),
    Site("adm256", 256, 256, 128, dtypes=("bf16",)),
    Site("adm256", 512, 0, 64, dtypes=("bf16",)),
    Site("adm256", 512, 0, 64, resample=norm.UP, dtypes=("bf16",)),
    Site("adm256", 1024, 0, 16, dtypes=("bf16",)),
    Site("adm256", 1024, 1024, 8, dtypes=("bf16",)),
)


@dataclass(frozen=True)
class Work:
    """What one call runs: where it stands, its kernels, their tensors (without memory), elements of the input."""

    site: str
    dtype: str
    direction: str
    elements: int
    launches: tuple[Launch, ...]
    tensors: dict[str, Tensor]

    def bytes_per_element(self) -> float:
        """Of every tensor a kernel is given, once per kernel: what must cross the memory bus at least."""
        given = [self.tensors.get(name) for launch in self.launches for name in launch.pointers.values()]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in given if tensor is not None)
        return round(moved / self.elements, 2)


def site_work(site: Site, label: str, architecture: int) -> list[Work]:
    """Both directions of a normalisation."""
    dtype = DTYPES[label]
    channels = site.channels + site.skip
    behind = {0: site.size, norm.UP: 2 * site.size, norm.DOWN: site.size // 2}[site.resample]
    x, y, both = (
        _activation(c, s, dtype)
        for c, s in ((site.channels, site.size), (channels, behind), (channels, site.size))
    )
    vector, stats = (
        torch.empty(channels, dtype=dtype, device="meta"),
        torch.empty(BATCH, site.groups, 2, device="meta"),
    )
    first = torch.empty(site.channels, dtype=dtype, device="meta")
    tensors = {"x": x, "row": first, "weight": vector, "bias": vector, "stats": stats}
    tensors |= {"y": y, "v": y, "v_x": x, "add": both, "means": stats}
    if site.skip:
        tensors |= {"skip": _activation(site.skip, site.size, dtype)}
        tensors |= {"v_skip": tensors["skip"]}
    found = []
    of_sum = {"plus": x, "total": x}
    for direction, plan_of, options, given in (
        ("forward", norm.forward_plan, {"eps": 1e-6}, {}),
        ("backward", norm.backward_plan, {"add": True}, {}),
        # Where a block begins, and one ended before it.
        ("forward of sum", norm.forward_plan, {"eps": 1e-6, "plus": True, "scale": SCALE}, of_sum),
        ("backward of sum", norm.backward_plan, {"add": True, "more": True, "scale": SCALE}, {"more": x}),
    ):
        common = {"height": site.size, "width": site.size, "groups": site.groups, "resample": site.resample}
        common |= {"rows": False, "weights": False, "biases": False, "activate": True, "eps": 0.0}
        common |= {"first": site.channels, "second": site.skip, "itemsize": x.element_size()}
        problem = norm.Problem(**(common | options))
        plan = plan_of(architecture, problem)
        partial = torch.empty(BATCH, plan.tiles, 2, channels, device="meta")
        tensors_given = tensors | given | {"partial": partial}
        found.append(Work(site.name, label, direction, both.numel(), plan.launches, tensors_given))
    return found


def all_work(architecture: int) -> Iterator[Work]:
    """Everything in the table."""
    for site in SITES:
        for label in site.dtypes:
            yield from site_work(site, label, architecture)
    for label in ("bf16", "fp32"):
        dtype = DTYPES[label]
        large, small = _activation(256, 32, dtype), _activation(256, 16, dtype)
        itemsize, bias = large.element_size(), torch.empty(256, dtype=dtype, device="meta")
        add = pointwise.residual_launch(architecture, 256, 32 * 32, itemsize, 0.5, True)
        up, down = (
            pointwise.resample_launch(architecture, 256, 16, 16, itemsize, spread, 1.0)
            for spread in (True, False)
        )
        sums = {"a": large, "b": large, "bias": bias, "out": large}
        yield Work("cifar10 32x32x256", label, "residual", large.numel(), (add,), sums)
        yield Work("cifar10 16x16x256", label, "up", small.numel(), (up,), {"x": small, "out": large})
        yield Work("cifar10 32x32x256", label, "down", large.numel(), (down,), {"x": large, "out": small})


def _activation(channels: int, size: int, dtype: torch.dtype) -> Tensor:
    empty = torch.empty(BATCH, channels, size, size, dtype=dtype, device="meta")
    return empty.contiguous(memory_format=torch.channels_last)


def compile_launch(
    launch: Launch, tensors: dict[str, Tensor], architecture: int
) -> tuple[KernelCode, int, str]:
    """The kernel on ``architecture``, for 16-byte aligned tensors: its code, shared memory, and digest of its PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    aligned: dict[tuple[int], list[list[object]]] = {}
    for place, name in enumerate(launch.kernel.arg_names):
        tensor = tensors.get(launch.pointers[name]) if name in launch.pointers else None
        if tensor is None:
            signature[name] = "constexpr"
            constants[place,] = launch.constants.get(name)
        else:
            signature[name] = _POINTERS[tensor.dtype]
            aligned[place,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, aligned)
    options = {"num_warps": launch.tile.warps, **OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, WARP), options=options)
    (code,) = read_cubin(compiled.asm["cubin"])
    return code, compiled.metadata.shared, ptx_digest(compiled.asm["ptx"])


def ptx_digest(ptx: str) -> str:
    """Of the instructions: names, comments, and lines and files of the source make no difference."""
    instructions = []
    for line in re.split(r"^\s*\.section\s+\.debug", ptx, maxsplit=1, flags=re.MULTILINE)[0].splitlines():
        line = " ".join(line.partition("//")[0].split())
        if line and not re.match(r"\.loc |\.file |\$L__(tmp|func_)", line):
            instructions.append(line)
    text = "\n".join(instructions)
    name = re.search(r"\.entry (\w+)", text)
    text = re.sub(rf"\b{name[1]}(?=\b|_param_)", "kernel", text) if name else text
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def accesses_wanted(launch: Launch, itemsize: int) -> tuple[int, int]:
    """(loads, stores) of ``launch.access`` bytes per thread that the activations take."""
    if not launch.access:
        return 0, 0
    per_tile = max(1.0, launch.tile.elements * itemsize / (WARP * launch.tile.warps * launch.access))
    return math.ceil(per_tile * launch.reads), math.ceil(per_tile * launch.writes)


def table(only: str = "", architectures: tuple[int, ...] = ARCHITECTURES) -> list[dict[str, Any]]:
    """A row per kernel, site, dtype and architecture."""
    rows = []
    for architecture in architectures:
        for work in all_work(architecture):
            for launch in work.launches:
                if only in launch.kernel.__name__:
                    rows.append(row_of(architecture, work, launch))
        rows += [row for row in cuda_code.cuda_rows(architecture) if only in row["kernel"]]
    return rows


def row_of(architecture: int, work: Work, launch: Launch) -> dict[str, Any]:
    """One row, compiled now."""
    code, shared, ptx = compile_launch(launch, work.tensors, architecture)
    tile = launch.tile
    programs = occupancy(architecture, code.registers, shared, tile.warps)
    loads, stores = accesses_wanted(launch, DTYPES[work.dtype].itemsize)
    return {
        "kernel": launch.kernel.__name__,
        "site": work.site,
        "dtype": work.dtype,
        "direction": work.direction,
        "sm": architecture,
        "tile": f"{tile.pixels}x{tile.channels}",
        "warps": tile.warps,
        "shared": shared,
        "programs_per_sm": programs,
        "warps_per_sm": programs * tile.warps,
        "access": launch.access,
        "loads_wanted": loads,
        "stores_wanted": stores,
        "instructions_per_element": round(code.instructions * WARP * tile.warps / tile.elements, 1),
        "bytes_per_element": work.bytes_per_element(),
        **code.figures(),
        "ptx": ptx,
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row, in words: spills, atomics, or accesses narrower than the layout allows."""
    found = [f"{row[word]} {word}" for word in ("spills", "atomics") if row[word]]
    for kind in ("loads", "stores"):
        wanted = row.get(f"{kind}_wanted", 0)
        wide = sum(count for width, count in row[kind].items() if int(width) >= row.get("access", 0))
        if wide < wanted:
            found.append(f"{wide} {kind} of {row['access']} bytes per thread, {wanted} are needed")
    return found


def markdown(report: dict[str, Any]) -> str:
    """The table for people."""
    heads = ["kernel", "site", "dtype", "direction", "sm", "tile", "warps", "registers", "spills", "shared"]
    heads += ["warps_per_sm", "loads", "stores", "instructions_per_element", "bytes_per_element"]
    lines = [
        "# Machine code of the GPU kernels",
        "",
        f"Made by `python -m bench.machine_code --write` with Triton {report['triton']}, for 16-byte aligned",
        "tensors; no GPU was involved, and nothing here is a timing. Loads and stores are instructions per thread",
        "by bytes per access (`16: 4` means four of 16 bytes); the narrow ones among them read per-channel numbers.",
        "`warps_per_sm` counts the warps that registers and shared memory let a multiprocessor hold, of 64.",
        "`instructions_per_element` is the length of the code per element of the tile, padding included.",
        "`bytes_per_element` is for all kernels of the direction together, per element of the input: every tensor",
        "once per kernel (a tile read twice by one program counts once).",
        "",
        "| " + " | ".join(head.replace("_", " ") for head in heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for row in report["rows"]:
        lines.append("| " + " | ".join(_cell(row.get(head, "")) for head in heads) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def fingerprint() -> str:
    """A digest of what Triton compiles and of what it is told: all of fastpure/kernels, and this file.

    Comments and line breaks make no difference.
    """
    files = [*sorted((ROOT / "fastpure" / "kernels").rglob("*.py")), Path(__file__)]
    texts = [ast.unparse(ast.parse(path.read_text(encoding="utf-8"))) for path in files]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="replace the committed table")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    options = parser.parse_args(words)
    import triton

    report = {
        "triton": triton.__version__,
        "kernels": fingerprint(),
        "cuda": cuda_code.fingerprint(),
        "rows": table(options.only),
    }
    if options.write and not options.only:
        if cuda_code.sources() and all("dtype" in row for row in report["rows"]):
            raise SystemExit("nvcc was not found: the table would lose the kernels of csrc/cuda")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "machine_code.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "machine_code.md").write_text(markdown(report), encoding="utf-8")
    else:
        print(markdown(report))
    wrong = [(row, fault) for row in report["rows"] for fault in faults(row)]
    for row, fault in wrong:
        where = f"{row['kernel']} ({row['site']}, {row.get('dtype', '')}, sm_{row['sm']})"
        print(f"{where}: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
