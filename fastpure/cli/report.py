"""`fastpure report`: run files as one HTML page, and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import on_terminal

if TYPE_CHECKING:
    from torch import nn

    from ..files import Unfinished

Formats = Annotated[
    str,
    typer.Option(
        help="What the charts of --figures are written as: svg, png, pdf or several, separated by commas; "
        "images are PNG, and PDF where that is among them."
    ),
]
RobustBenchJson = Annotated[
    Path | None,
    typer.Option(
        help="RobustBench's JSON of one run of CIFAR or ImageNet; link, title and authors are left to you."
    ),
]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run files made by `fastpure evaluate` or `sweep`.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    csv: Annotated[
        Path | None, typer.Option(help="Folder for the tables as CSV: runs, comparisons, images, draws.")
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="The same as Parquet (needs the extra parquet: pyarrow).")
    ] = None,
    latex: Annotated[
        Path | None,
        typer.Option(help="Folder for tables for a paper as LaTeX: headlines, results, comparisons."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for every chart and the images of every run (PNG) as files of their own."),
    ] = None,
    formats: Formats = "svg",
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Robustness report",
    shown: Annotated[int, typer.Option(help="Images shown per run; 0 shows none.")] = 8,
    traced: Annotated[
        int, typer.Option(help="Images over which confidence along the reverse process is averaged; 0: none.")
    ] = 16,
    measured: Annotated[
        int,
        typer.Option(
            help="Images whose purified versions are measured: distance, PSNR, SSIM, compression; 0: none."
        ),
    ] = 16,
    denoiser: Annotated[
        str | None,
        typer.Option(help="The runs' diffusion model, to show purified images. (default: the bundled ones)"),
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="The runs' classifier, together with --denoiser.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where purified images are computed: cpu, cuda or cuda:N.")
    ] = "cpu",
    robustbench_json: RobustBenchJson = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Show runs on one self-contained HTML page: accuracies with intervals, comparisons, curves and images.

    The page needs no network and can be mailed or printed. Purified images and confidences are computed anew where
    the networks are at hand: the bundled ones, or --denoiser and --classifier; settings come from the run files,
    and networks that are not those of a run are never shown in their place.

    Examples:

      fastpure report runs/diffpure.sqlite runs/coup.sqlite --out report.html

      fastpure report runs/sweep/*.sqlite --out sweep.html --csv tables

      fastpure report runs/*.sqlite --latex paper/tables \\
          --figures paper/figures --formats svg,pdf

      fastpure report runs/coup.sqlite --robustbench-json Me2026Paper.json
    """
    from ..errors import whole
    from ..files import unfinished
    from ..report import Options, write_robustbench
    from ..report import report as make
    from ..report.export import TABLES, require_pyarrow
    from ..report.latex import LATEX
    from ..report.page import check_formats, refuse_existing

    options = Options(title, whole("--shown", shown), traced, measured)
    kinds = tuple(word.strip().lower() for word in formats.split(",") if word.strip())
    check_formats(kinds)
    folders = ((csv, "csv", TABLES), (parquet, "parquet", TABLES), (latex, "tex", LATEX))
    tables = [folder / f"{name}.{kind}" for folder, kind, names in folders if folder for name in names]
    if robustbench_json is not None and len(runs) != 1:
        raise ValueError(f"`--robustbench-json` must be given with one run, got {len(runs)}")
    extra = [] if robustbench_json is None else [robustbench_json]
    wanted, found = [out, *extra, *tables], list[Any]()
    with unfinished([out]) as batch:
        refuse_existing(wanted, force, batch)  # before any work, and before the first of several files
        if parquet is not None:
            require_pyarrow()
        for path in extra:  # first, since it refuses runs that have no place there
            _say([write_robustbench(runs[0], path, force=force, within=batch)])
        make(  # which knows the names of its pictures, and refuses before it writes
            runs,
            out,
            figures=figures,
            formats=kinds,
            networks=networks_of(denoiser, classifier, device),
            options=options,
            force=force,
            say=lambda text: typer.echo(text, err=True),
            progress=on_terminal(),
            wrote=lambda path: _say([path]),
            measured=found.extend,
            within=batch,
        )
        _write_tables(runs, csv, parquet, latex, found, force, batch)


def _write_tables(
    runs: list[Path],
    csv: Path | None,
    parquet: Path | None,
    latex: Path | None,
    measured: list[Any],
    force: bool,
    batch: Unfinished,
) -> None:
    from ..report import write_csv, write_latex, write_parquet

    if parquet is not None:
        _say(write_parquet(runs, parquet, measured=measured, force=force, within=batch))
    if csv is not None:
        _say(write_csv(runs, csv, measured=measured, force=force, within=batch))
    if latex is not None:
        _say(write_latex(runs, latex, force=force, within=batch))


def _say(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}")


def networks_of(denoiser: str | None, classifier: str | None, device: str) -> tuple[Any, nn.Module] | None:
    """The networks named by the options; None where the bundled ones on the CPU will do."""
    from .options import checked_device

    place = checked_device(device)
    if denoiser is not None and classifier is None:
        raise ValueError("`--classifier` must be given with --denoiser: no defence is without one")
    if classifier is None and place == "cpu":
        return None
    from ..checkpoints import load_denoiser
    from ..classifiers import load_classifier

    if classifier is None:
        return load_denoiser("digits").to(place), load_classifier("digits").to(place)
    network = None if denoiser is None else load_denoiser(denoiser).to(place)
    return network, load_classifier(classifier).to(place)
