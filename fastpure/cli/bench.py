"""`fastpure bench`: how fast the exact gradient is on this machine, beside everything else that computes one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import checked_device

if TYPE_CHECKING:
    from ..baselines import Table


def bench(
    network: Annotated[
        str, typer.Option(help="ddpmpp-cifar10 (official size), ddpmpp-cifar10-small or ddpmpp-digits.")
    ] = "ddpmpp-cifar10",
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 2,
    steps: Annotated[int, typer.Option(help="Reverse steps; published purifications have 100.")] = 4,
    precision: Annotated[str, typer.Option(help="Any of fp32,tf32,bf16,fp16, separated by commas.")] = "fp32",
    classifier: Annotated[
        str | None, typer.Option(help="Add COUP's guidance by this classifier: digits, or a weights file.")
    ] = None,
    torch_compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="Also the plain network under torch.compile, in two modes (takes minutes)."
        ),
    ] = False,
    repeats: Annotated[int, typer.Option(help="Measured turns; all cases run in each.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Compare purification and exact gradient with plain PyTorch, checkpointing and torchsde, on this machine.

    All cases use the same random weights, images and step table, and take turns in one process. "error" is the
    relative error of the gradient against float64 under the same noise. CPU is the processor time of all threads:
    go by it where others use the machine, by seconds where it is idle. "% of rate" is the arithmetic of the passes
    (one per step, two for a gradient; what is recomputed does not count) over what the processor does in the same
    turns in its faster large product, a matrix product or a 3x3 convolution. torchsde's rows need the package
    torchsde (pip install 'fastpure[bench]').

    Example: fastpure bench --precision fp32,bf16
    """
    from ..baselines import Comparison, compare
    from ..classifiers import load_classifier
    from ..progress import Progress, on_terminal

    if out is not None and out.exists():
        raise ValueError(f"`--out` {out} exists; remove it or choose another name")
    what = Comparison(
        network,
        batch_size,
        steps,
        tuple(name.strip() for name in precision.split(",")),
        None if classifier is None else load_classifier(classifier),
        torch_compile,
        repeats,
        checked_device(device),
    )
    with Progress(1.0, "done", doing="preparing", fractions=True, shown=on_terminal()) as bar:
        tables = compare(what, lambda stage, share: bar.to(share, stage))
    for title, table in tables.items():
        show(f"{title}, {network}, B = {batch_size}, {steps} steps, {device}", table)
    if out is not None:
        _write(out, what.network, tables)


def show(title: str, table: Table) -> None:
    """Print the rows, and the rates that their shares refer to."""
    from rich import table as rich_table
    from rich.console import Console

    from ..baselines.processor import fastest

    printed = rich_table.Table(title=title, title_justify="left", box=None, pad_edge=False)
    printed.add_column("case", no_wrap=True)
    heads = (
        "seconds",
        "min",
        "max",
        "CPU s",
        "times ours",
        "by CPU",
        "% of rate",
        "by CPU",
        "error",
        "cosine",
    )
    for name in (*heads, "peak MB"):
        printed.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        seconds = row.timing.seconds
        printed.add_row(
            row.name,
            f"{row.timing.median:.4g}",
            f"{min(seconds):.4g}",
            f"{max(seconds):.4g}",
            f"{row.timing.cpu_median:.4g}",
            f"{row.ratio:.2f}",
            f"{row.cpu_ratio:.2f}",
            "" if row.share is None else f"{100 * row.share:.0f}",
            "" if row.cpu_share is None else f"{100 * row.cpu_share:.0f}",
            "" if row.error is None else f"{row.error:.1e}",
            "" if row.cosine is None else f"{row.cosine:.5f}",
            "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        )
    Console(width=150).print(printed)
    for precision in dict.fromkeys(rate.precision for rate in table.rates):
        best = fastest(table.rates, precision)
        words = ", ".join(
            f"{rate.name} {rate.per_second() / 1e9:.0f}{' (the rate)' if rate is best else ''}"
            for rate in table.rates
            if rate.precision == precision
        )
        print(f"GFLOP/s in {precision}: {words}; a case does {table.flops / 1e9:.1f} GFLOP")
    print()


def _write(out: Path, network: str, tables: dict[str, Table]) -> None:
    from ..baselines import Processor
    from ..files import replace_file
    from .doctor import environment

    content = {
        "network": network,
        "environment": environment(),
        "processor": asdict(Processor.here()),
        "figures": {title: [asdict(row) for row in table.rows] for title, table in tables.items()},
        "rates": {title: [asdict(rate) for rate in table.rates] for title, table in tables.items()},
        "flops": {title: table.flops for title, table in tables.items()},
    }
    replace_file(out, (json.dumps(content, indent=1) + "\n").encode())
