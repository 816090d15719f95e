"""`fastpure reproduce`: tables and figures of papers, each one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o


def reproduce(
    name: Annotated[str | None, typer.Argument(help="Which one; without a name all are listed.")] = None,
    denoiser: Annotated[str | None, typer.Option(help="The paper's diffusion model.")] = None,
    classifier: Annotated[str | None, typer.Option(help="The paper's classifier.")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<role=file>",
            help="Any other network, as ROLE=FILE; may be repeated. What there is for, `fastpure reproduce` says. Rows "
            "without their networks are left out.",
        ),
    ] = None,
    data_path: o.DataPath = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for run files, page, table and figures. (default: reproduced/NAME)"),
    ] = None,
    small: Annotated[
        bool,
        typer.Option(
            "--small", help="Bundled digits and networks instead of the paper's: minutes, and other numbers."
        ),
    ] = False,
    n: Annotated[int | None, typer.Option(help="Only that many images.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure for a few seconds and print what the rest would cost.")
    ] = False,
    seed: o.Seed = 0,
    precision: o.PrecisionName = "fp32",
    device: o.Device = "cpu",
    rows: o.Rows = None,
    batch_size: o.BatchSize = 64,
    progress: Annotated[bool, typer.Option(help="Show images, time left and accuracy so far.")] = True,
) -> None:
    """Run a table or figure of a paper: the attacks, a page, a table with the paper's numbers beside ours, pictures.

    Interrupt with Ctrl-C at any time, or let it be killed: the same command continues, to the same result.

    Examples:

      fastpure reproduce

      fastpure reproduce coup-table1 --small

      fastpure reproduce coup-table1 --classifier wrn.pt --dry-run \\
          --denoiser checkpoint_8.pth --data-path cifar-10-python.tar.gz
    """
    from ..reproduce import EXPERIMENTS, Full, Setting, Small

    if name is None:
        typer.echo("\n".join(_listing()))
        return
    experiment = EXPERIMENTS[_known(name)]
    files = _files(denoiser, classifier, network or [])
    shared: dict[str, Any] = {
        "n": n,
        "device": o.checked_device(device),
        "precision": precision,
        "seed": seed,
    }
    setting: Setting
    if small:
        if files or data_path is not None:
            raise ValueError(
                "`--small` brings its networks and images: leave out --denoiser, --classifier, --network, "
                "--data-path"
            )
        setting = Small(rows=rows, **shared)
    else:
        setting = Full(rows=rows, files=files, data_path=data_path, **shared)
    folder = out or Path("reproduced") / experiment.name
    if dry_run:
        from ..progress import on_terminal
        from ..reproduce import cost

        shown = progress and on_terminal()
        typer.echo(str(cost(experiment, setting, folder, batch_size=batch_size, progress=shown)))
        return
    _run(experiment, setting, folder, batch_size, progress)


def _run(experiment: Any, setting: Any, folder: Path, batch_size: int, progress: bool) -> None:
    from ..reproduce import reproduce as run

    def say(text: str) -> None:
        if progress:
            typer.echo(text, err=True)

    say(
        f"{experiment.title}, into {folder}; {experiment.label(setting)}. Ctrl-C stops, the same command continues"
    )
    with o.interruptible():
        written = run(experiment, setting, folder, batch_size=batch_size, progress=progress, say=say)
    table = folder / "table.md"
    typer.echo(table.read_text(encoding="utf-8"))
    typer.echo(f"wrote {', '.join(str(path) for path in written)}")


def _listing() -> list[str]:
    from ..reproduce import EXPERIMENTS, ROLES
    from ..reproduce.tables import listing

    lines = list(listing(EXPERIMENTS))
    lines += ["", "Networks, given as --denoiser, --classifier, --network ROLE=FILE:"]
    lines += [f"  {role:<11} {what.what}" for role, what in ROLES.items()]
    lines += [
        "",
        "With --small all of them run on bundled digits networks, in minutes; their numbers are not the paper's.",
    ]
    return lines


def _known(name: str) -> str:
    from ..errors import mistake
    from ..reproduce import EXPERIMENTS
    from ..words import did_you_mean

    if name not in EXPERIMENTS:
        remedy = did_you_mean(name, EXPERIMENTS) or "`fastpure reproduce` lists them"
        raise ValueError(mistake("name", f"one of {', '.join(EXPERIMENTS)}", repr(name), remedy))
    return name


def _files(denoiser: str | None, classifier: str | None, network: list[str]) -> dict[str, str]:
    from ..errors import one_of
    from ..reproduce import ROLES

    files = {role: file for role, file in (("denoiser", denoiser), ("classifier", classifier)) if file}
    for text in network:
        role, equals, file = text.partition("=")
        if not equals or not file.strip():
            raise ValueError(f"`--network` must be ROLE=FILE, got {text!r}")
        files[one_of("--network", role.strip(), ROLES)] = file.strip()
    return files
