"""Purifying files: pictures of any size, folders of them, arrays; in Python what `fastpure purify` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from ...checkpoints import load_denoiser
from ...errors import mistake, one_of, whole
from ...methods import diffpure
from ...nets import Denoiser
from ...progress import Progress
from ...shown import LISTED, Card, Grid, Shown
from ...signatures import suggests_names
from ...version import __version__
from ..purifier import Purifier
from ..tiled import TiledPurifier
from .fitting import APART, FITS, Fitting
from .inputs import ImageFile, find_sources
from .run import CONVENTIONS, PurifyRun
from .sheet import contact_sheet

__all__ = [
    "FITS",
    "PHOTO_DENOISER",
    "Purified",
    "carry_out",
    "conventions",
    "fingerprint",
    "photo_method",
    "prepare",
    "purify_files",
]

PHOTO_DENOISER = "cifar10-small"
"""The bundled network that purifies pictures where none is named."""

SHEETS = (".png", ".pdf", ".svg", ".jpg")
"""Kinds of contact sheets."""


@final
@dataclass(frozen=True, repr=False)
class Purified(Shown):
    """What came of `purify_files`.

    Attributes:
        out: the folder.
        written: every result that is there now.
        new: how many images were purified now, and not by the run that this one continued.
        refused: (input, reason) of those that could not be read or fitted.
        sheet: the contact sheet, if one was asked for.
    """

    out: Path
    written: tuple[Path, ...]
    new: int
    refused: tuple[tuple[Path, str], ...]
    sheet: Path | None = None

    def _shown(self) -> Card:
        sheet = [] if self.sheet is None else [("sheet", str(self.sheet))]
        rows = [("folder", str(self.out)), ("purified now", str(self.new)), *sheet]
        alarms = tuple(f"not purified: {reason}" for _, reason in self.refused)
        listed = tuple((path.name,) for path in self.written[:LISTED])
        return Card(
            f"Purified: {len(self.written)} files" + (f", {len(alarms)} not" if alarms else ""),
            tuple(rows),
            grids=(Grid("files" if len(self.written) <= LISTED else "the first files", ("",), listed),),
            alarms=alarms,
        )

    def __str__(self) -> str:
        lines = [f"{len(self.written)} files in {self.out}, {self.new} images purified now"]
        lines += [f"not purified: {reason}" for _, reason in self.refused]
        return "\n".join(lines)


def photo_method() -> Any:
    """The method for pictures where none is named: DiffPure from t = 0.05 in four steps of the exponential integrator.

    So few steps of Euler's method would leave visible noise; this one's last step adds none.
    """
    return diffpure(0.05, 0.0125, solver="exponential")


@suggests_names
def purify_files(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    purifier: Purifier | None = None,
    *,
    fit: str = "tile",
    draws: int = 1,
    ids: str = "position",
    key: str | None = None,
    batch_size: int = 16,
    sheet: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> Purified:
    """Purify pictures and arrays into a folder, under the same names.

    Pictures may have any size; they come out upright, as PNG, in the size they had. What cannot be read is left out and
    named in the result. A killed call continues when it is made again, and ends with the same bytes.

    Args:
        inputs: picture files, folders of them (read recursively), .npy or .npz files; one, or several.
        out: the folder for the results, outside of the inputs.
        purifier: the bundled CIFAR-10 network with `photo_method` if None.
        fit: of pictures of another size than the diffusion model's: "tile", "resize" or "crop", see ``FITS``.
        draws: realisations of the noise; several go into out/draw0, out/draw1, ...
        ids: "position": an image's noise is that of its place among all; "names": of the number in its file name.
        key: which array of an .npz holds the images, if several could.
        batch_size: images, or tiles, purified together.
        sheet: a picture file for a contact sheet of all pictures before and after.
        force: overwrite results of other runs.
        progress: show a bar.

    Raises:
        ValueError, TypeError: wrong arguments.
        DataError: nothing can be purified.
        ResumeError, RunLocked, StoreUnavailable, DiskFull: of the folder; see `PurifyRun.opened`.
    """
    several = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if purifier is None:
        purifier = Purifier(load_denoiser(PHOTO_DENOISER), photo_method())
    elif not isinstance(purifier, Purifier):
        raise TypeError(mistake("purifier", "a fastpure.Purifier", type(purifier).__name__))
    model, guidance = purifier.denoiser, purifier.method.guidance
    networks = {"denoiser": fingerprint(model), CONVENTIONS: conventions(model)}
    if guidance is not None:
        networks |= {f"guide {i}": fingerprint(network) for i, network in enumerate(guidance.networks())}
    run = prepare(
        [Path(path) for path in several],
        Path(out),
        purifier,
        networks,
        fit=fit,
        draws=draws,
        ids=ids,
        key=key,
        batch_size=batch_size,
        sheet=None if sheet is None else Path(sheet),
    )
    return carry_out(run, purifier, force, progress, None if sheet is None else Path(sheet))


def prepare(
    inputs: Sequence[Path],
    out: Path,
    purifier: Purifier,
    networks: dict[str, str],
    *,
    fit: str,
    draws: int,
    ids: str,
    key: str | None,
    batch_size: int,
    sheet: Path | None,
    spelt: Callable[[str], str] = str,
) -> PurifyRun:
    """A run that has read all its inputs once; arguments as for `purify_files`.

    Args:
        networks: name -> checksum of what the results depend on.
        spelt: what messages call an argument.
    """
    one_of(spelt("fit"), fit, FITS)
    one_of(spelt("ids"), ids, ("position", "names"))
    whole(spelt("draws"), draws, 1, 2**20)
    whole(spelt("batch_size"), batch_size, 1)
    for path in inputs:
        # Results inside an input folder would be inputs of the same command given again.
        if path.is_dir() and path.resolve() in (out.resolve(), *out.resolve().parents):
            raise ValueError(mistake(spelt("out"), "a folder outside of the inputs", f"{out}, in {path}"))
    sources = tuple(find_sources(inputs, key))
    shape = purifier.image_shape
    settings: dict[str, Any] = {
        "fastpure": __version__,
        "torch": torch.__version__,
        "method": str(purifier.method),
        "networks": networks,
        "seed": purifier.seed,
        "draws": draws,
        "ids": ids,
        "key": key,
        "image_shape": list(shape),
        "batch_size": batch_size,
        "precision": purifier.precision,
        "device": purifier.device.type,
    }
    if isinstance(purifier, TiledPurifier):  # what the others are, the settings above say
        settings["purifier"] = purifier.describe()
    run = PurifyRun(sources, out, settings, shape, batch_size, draws, ids, fit)
    run.check()
    usable = [(i, source) for i, source in enumerate(sources) if i not in run.broken]
    settings["inputs"] = {str(source.name): source.digest() for _, source in usable}
    fitted = [
        str(source.name)
        for _, source in usable
        if isinstance(source, ImageFile) and source.size() != shape[1:]
    ]
    if fitted:  # where nothing is fitted, folders of earlier versions continue
        settings["fit"] = fit
    if sheet is not None:
        _check_sheet(sheet, run, inputs, spelt("sheet"))
    return run


def _check_sheet(sheet: Path, run: PurifyRun, inputs: Sequence[Path], name: str) -> None:
    """Raise ValueError unless ``sheet`` can be drawn, and overwrites neither an input nor a result."""
    if sheet.suffix.lower() not in SHEETS:
        raise ValueError(mistake(name, f"a file name that ends in {', '.join(SHEETS)}", str(sheet)))
    usable = [source for i, source in enumerate(run.sources) if i not in run.broken]
    if not any(isinstance(source, ImageFile) for source in usable):
        raise ValueError(mistake(name, "left out where no input is a picture", str(sheet)))
    place = sheet.resolve()
    results = {run.target(draw, i).resolve() for draw in range(run.draws) for i in range(len(run.sources))}
    taken = {path.resolve() for path in inputs} | {source.path.resolve() for source in run.sources} | results
    inside = [path for path in inputs if path.is_dir() and path.resolve() in place.parents]
    if place in taken or inside:
        raise ValueError(mistake(name, "a file that is neither an input, in one, nor a result", str(sheet)))


def carry_out(
    run: PurifyRun, purifier: Purifier, force: bool, progress: bool, sheet: Path | None = None
) -> Purified:
    """Purify what is missing of ``run``, and draw the contact sheet."""
    work = Fitting(purifier, run.fit or APART[0], run.batch_size)
    with run.opened(force), Progress(run.total, "images", doing="purifying", shown=progress) as bar:
        new = run.execute(work, bar.step)
    usable = [(i, source) for i, source in enumerate(run.sources) if i not in run.broken]
    written = tuple(run.target(draw, i) for draw in range(run.draws) for i, _ in usable)
    if sheet is not None:
        pictures = [(i, source) for i, source in usable if isinstance(source, ImageFile)]
        contact_sheet([(source.path.name, source.path, run.target(0, i)) for i, source in pictures], sheet)
    refused = tuple((run.sources[i].path, reason) for i, reason in run.broken.items())
    return Purified(run.out, written, new, refused, sheet)


def conventions(denoiser: Denoiser) -> str:
    """SHA-256 of what a denoiser is besides its weights; files of the same weights may say different things."""
    text = json.dumps(denoiser.describe(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
