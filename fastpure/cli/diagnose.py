"""`fastpure diagnose`: what the defence of a run does to its images and to an attacker's gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from ..purify import Target
    from ..report.data import Entry
    from ..report.quality import Quality


def diagnose(
    run: Annotated[Path, typer.Argument(help="A run file made by `fastpure evaluate`.")],
    n: Annotated[int, typer.Option(help="How many of its images, the first ones.")] = 16,
    draws: Annotated[int, typer.Option(help="Draws whose gradients are compared, at least 2.")] = 16,
    gradient: Annotated[
        str, typer.Option(help="What is differentiated: exact, detached, unguided, bpda, ...")
    ] = "exact",
    denoiser: Annotated[
        str | None, typer.Option(help="The run's diffusion model. (default: the bundled ones)")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="The run's classifier, together with --denoiser.")
    ] = None,
    device: o.Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Measure a run's defence: how far it moves images, how it shrinks attacks, how noisy its gradients are.

    Distances of purified images with the bounds on them, PSNR, SSIM, LPIPS where its package is installed, compression
    of the attack, and the agreement of gradients between draws. The defence is rebuilt as `fastpure report` does.

    Example: fastpure diagnose runs/coup.sqlite --n 32 --draws 32
    """
    import json
    from contextlib import ExitStack

    from ..errors import whole
    from ..report.data import open_entries
    from ..report.rebuild import find_defense
    from .report import networks_of

    whole("--n", n, 1)
    whole("--draws", draws, 2)
    networks = networks_of(denoiser, classifier, device)
    with ExitStack() as stack:
        (entry,) = open_entries([run], stack)
        if not len(entry.run.positions):
            raise ValueError(f"{run} has no finished image yet")
        target = find_defense(entry.identity["defense"], (), networks)
        found, lines = _measure(entry, target, n, draws, gradient)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))


def _measure(
    entry: Entry, target: Target, n: int, draws: int, gradient: str
) -> tuple[dict[str, Any], list[str]]:
    """(everything as plain values, the lines that say it)."""
    import torch

    from ..diagnostics import gradient_agreement
    from ..report.quality import quality

    positions = entry.run.positions[:n].tolist()
    labels, ids = (torch.from_numpy(column[:n]) for column in (entry.run.labels, entry.run.sample_ids))
    n = len(positions)
    found: dict[str, Any] = {"run": str(entry.run.path), "images": n, "defense": entry.summary.defense}
    lines = [f"defence   {entry.summary.defense}", f"images    the first {n} of {len(entry.run.positions)}"]
    x = torch.from_numpy(entry.run.images("clean", positions)).to(target.device)
    if target.purifies:
        said = quality(entry, target, n)
        found["images_purified"], found["note"] = [_row(row) for row in said.rows], said.note
        lines += ["", *_quality_lines(said)]
        found["distance"], more = _bounds(entry, target, positions, ids)
        lines += ["", *more]
    agreement = gradient_agreement(target, x, labels, ids.to(x.device), draws=draws, gradient=gradient)
    found["gradients"] = {
        "draws": agreement.draws,
        "gradient": gradient,
        "cosine": _number(_mean(agreement.cosine)),
        "snr_median": _number(float(agreement.snr.nanmedian())),
    }
    return found, [*lines, "", str(agreement)]


def _bounds(entry: Entry, target: Target, positions: list[int], ids: Any) -> tuple[dict[str, Any], list[str]]:
    """Distance and bounds of the originals and of the attacked images, on draw 0 of the deployed defence."""
    import torch

    from ..diagnostics import distance_bound
    from ..report.pictures import noun

    purifier = target.defense.purifier
    if purifier.method.procedure is not None:
        return {}, [f"no bound of the distance: {purifier.method.name} walks its table by a rule of its own"]
    found, lines = {}, []
    for which in ("clean", "adversarial")[: 2 if entry.attacked else 1]:
        x = torch.from_numpy(entry.run.images(which, positions)).to(target.device)
        bound = distance_bound(purifier, x, ids.to(x.device))
        names = ("moved", "bound", "score", "noise", "image", "guidance", "corrected", "printed")
        values = {name: getattr(bound, name) for name in names}
        name = noun(entry, which)
        found[name] = {k: _number(_mean(v)) for k, v in values.items() if v is not None}
        lines += [f"{name} images", *(f"  {line}" for line in str(bound).splitlines())]
    return found, lines


def _quality_lines(said: Quality) -> list[str]:
    from ..report.tables import decimals

    perceptual = any(row.lpips is not None for row in said.rows)
    heads = ["L2", "Linf", "PSNR, dB", "SSIM", *(["LPIPS"] if perceptual else []), "compression"]
    lines = [f"{'against the originals':<24}" + "".join(f"{head:>12}" for head in heads)]
    for row in said.rows:
        values = [decimals(row.l2, 3), decimals(row.linf, 3), decimals(row.psnr, 1), decimals(row.ssim, 3)]
        values += [decimals(row.lpips, 3)] if perceptual else []
        values.append(decimals(row.compression, 2))
        lines.append(f"{row.name:<24}" + "".join(f"{value:>12}" for value in values))
    return [*lines, said.note] if said.note else lines


def _row(row: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        name: _number(value) if isinstance(value, float) else value for name, value in asdict(row).items()
    }


def _mean(values: Any) -> float:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else math.nan


def _number(value: float) -> float | None:
    """JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None
