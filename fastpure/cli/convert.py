"""`fastpure convert`: somebody's checkpoint to fastpure's own format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

CheckpointFormat = Annotated[
    str | None,
    typer.Option(
        "--format", help="native, score_sde, guided_diffusion, edm or diffusers. (default: recognised)"
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--model-config",
        help="JSON file with the original project's configuration, for files that cannot say it.",
    ),
]
ClassLabel = Annotated[
    int | None, typer.Option(help="The class that a class-conditional network is told, from 0.")
]
WhichWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Of a file with several sets of weights: ema (averaged), raw, or its name there. (default: averaged)",
    ),
]
Normalise = Annotated[
    str | None,
    typer.Option(
        help="Of a classifier: none, cifar10, cifar100, imagenet, or means and deviations as 0.5,0.5,0.5:0.5,0.5,0.5."
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(help="Of a classifier: a name such as wrn-70-16-dropout, where its file leaves it open."),
]
Activation = Annotated[
    str | None, typer.Option(help="Of a classifier: relu or silu, where its file leaves it open.")
]
DTYPES = ("float16", "bfloat16", "float32", "float64")


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Checkpoint file, or folder of diffusers.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write.")],
    format: CheckpointFormat = None,
    config: ConfigFile = None,
    class_label: ClassLabel = None,
    weights: WhichWeights = None,
    classifier: Annotated[
        bool, typer.Option("--classifier", help="IN is a classifier of another project, not a denoiser.")
    ] = False,
    normalise: Normalise = None,
    architecture: Architecture = None,
    activation: Activation = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Stored precision: float16 halves the file. (default: that of the checkpoint)"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")] = False,
) -> None:
    """Write a checkpoint of another project as a fastpure file, which describes itself and holds no code.

    The weights keep every bit unless --dtype asks for another precision. Training checkpoints shrink to the
    averaged weights. Such a file needs no --model-config any more: fastpure.load_denoiser("OUT.safetensors"). A
    classifier trained by `fastpure train` can be stored in another precision in the same way; one of another project
    becomes a file that knows its normalisation: fastpure convert --classifier net.pt net.safetensors --normalise none

    Example: fastpure convert checkpoint_8.pth ddpmpp.safetensors
    """
    import torch

    from ..checkpoints import load_denoiser, save_denoiser
    from ..checkpoints.weights import read_metadata
    from ..errors import mistake, one_of
    from .options import normalisation

    if target.suffix != ".safetensors":
        raise ValueError(mistake("OUT", "a file name that ends in .safetensors", str(target)))
    if target.exists() and not force and _content(target) is None:
        raise ValueError(_exists(target))
    stored = getattr(torch, one_of("--dtype", dtype, DTYPES)) if dtype else None
    given = {"normalise": normalisation(normalise), "architecture": architecture, "activation": activation}
    given = {name: value for name, value in given.items() if value is not None}
    if classifier:
        for option, value in (("format", format), ("model-config", config), ("class-label", class_label)):
            if value is not None:
                raise ValueError(f"`--{option}` must not be given for a classifier, got {value}")
        _convert_foreign(source, target, weights, given, stored, force)
        return
    if given:
        raise ValueError(f"`--{next(iter(given))}` has no effect without --classifier")
    if source.is_file() and read_metadata(source).get("kind") == "classifier":
        for option, value in (("format", format), ("model-config", config), ("class-label", class_label)):
            if value is not None:
                raise ValueError(f"`--{option}` must not be given for a classifier, got {value}")
        _convert_classifier(source, target, stored, force)
        return
    denoiser = load_denoiser(source, format, config, class_label=class_label, weights=weights)
    report = denoiser.checkpoint
    notes = {
        "converted_from": report.path.name,
        "source_format": report.format,
        "source_sha256": report.sha256,
        "source_weights": report.ema,
    }
    earlier = dict(note.split(": ", 1) for note in report.notes) if report.format == "native" else {}
    _write(
        target, force, lambda path: save_denoiser(denoiser, path, notes={**notes, **earlier}, dtype=stored)
    )
    typer.echo(str(report))
    typer.echo(f"\nwritten: {target} ({target.stat().st_size:,} bytes)")


def _convert_foreign(
    source: Path,
    target: Path,
    weights: str | None,
    given: dict[str, Any],
    stored: torch.dtype | None,
    force: bool,
) -> None:
    from ..classifiers import load_classifier, report_of
    from ..classifiers.native import save_classifier

    network = load_classifier(source, weights=weights, **given)
    report = report_of(network)
    notes = {"converted_from": source.name}
    if report is not None:
        notes |= {"source_format": report.format, "source_weights": report.weights}
        typer.echo(str(report))
    _write(target, force, lambda path: save_classifier(network, path, notes=notes, dtype=stored))
    typer.echo(f"\nwritten: {target} ({target.stat().st_size:,} bytes)")


def _convert_classifier(source: Path, target: Path, stored: torch.dtype | None, force: bool) -> None:
    from ..checkpoints.weights import read_metadata
    from ..classifiers.native import RESERVED, read_classifier, save_classifier

    earlier = {name: value for name, value in read_metadata(source).items() if name not in RESERVED}
    network = read_classifier(source)
    _write(target, force, lambda path: save_classifier(network, path, notes=earlier, dtype=stored))
    typer.echo(f"written: {target} ({target.stat().st_size:,} bytes)")


def _write(target: Path, force: bool, save: Callable[[Path], Any]) -> None:
    """Save; a file that is there must be this very conversion, as after a kill at the end of it, unless ``force``."""
    from ..files import partial_name, real

    if force or not target.exists():
        save(target)
        return
    aside = partial_name(real(target))
    try:
        save(aside)
        same = _content(aside) == _content(target)
    finally:
        with suppress(OSError):
            aside.unlink()
    if not same:
        raise ValueError(_exists(target))


def _content(file: Path) -> tuple[Any, str] | None:
    """Header and SHA-256 of the weights of a safetensors file, whose notes come in any order; None if it is none."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                return None
            header, digest = json.loads(stream.read(length)), hashlib.sha256()
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
            return header, digest.hexdigest()
    except (OSError, ValueError, RecursionError):
        return None


def _exists(target: Path) -> str:
    from ..errors import mistake

    return mistake("OUT", "a new file", f"{target}, which exists", "Overwrite it with --force")
