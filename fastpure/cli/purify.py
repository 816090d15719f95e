"""`fastpure purify`: images, folders and arrays in, purified ones out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import names
from .experiment import stepped
from .options import checked_device
from .values import assigned

if TYPE_CHECKING:
    from torch import nn

    from ..methods import Method
    from ..presets import Preset
    from ..purify import Purifier


BARE = "method"
"""Of what ``--set NAME=VALUE`` is a setting here, as it was once written."""

Inputs = Annotated[
    list[Path],
    typer.Argument(metavar="IN...", help="Image files, folders of them (read recursively), .npy or .npz."),
]
Out = Annotated[Path, typer.Option(help="Folder for the results: same names, same order.")]
DenoiserName = Annotated[
    str | None,
    typer.Option(
        help="Diffusion model: a bundled name or a file of weights. (default: cifar10-small, and with it, where "
        "nothing else is said, four steps of the exponential integrator from t = 0.05)",
        autocompletion=names.among(names.DENOISERS),
    ),
]
ClassifierName = Annotated[
    str | None,
    typer.Option(
        help="Network that guides methods such as coup: a bundled name or a file of weights.",
        autocompletion=names.among(names.CLASSIFIERS),
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        help="Name of the method, such as diffpure (the default), coup, ddpm.",
        autocompletion=names.among(names.METHODS),
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        help="Published configuration, such as coup-cifar10-linf, instead of --method.",
        autocompletion=names.among(names.PRESETS),
    ),
]
Time = Annotated[float | None, typer.Option(help="Diffusion time from which images are purified.")]
Step = Annotated[float | None, typer.Option(help="Length of a step in diffusion time, instead of --steps.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the reverse process.")]
Scale = Annotated[float | None, typer.Option(help="Strength of the guidance.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="<setting>",
        help="Any other setting of the method, as method.NAME=VALUE; may be repeated.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all noise.")]
Draws = Annotated[
    int, typer.Option(help="Realisations of the noise; more than 1 go into OUT/draw0, OUT/draw1, ...")
]
Ids = Annotated[
    str,
    typer.Option(
        help="Which noise an image gets: by its position among all images, or by 'names', "
        "the last number in its file name (for .npz the array sample_ids, ids or index)."
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        help="Which array of an .npz holds the images, if several could; of an archive of fastpure attack it is x_adv."
    ),
]
Fit = Annotated[
    str,
    typer.Option(
        help="Pictures of another size than the diffusion model's: tile (overlapping tiles, no seams), resize, or crop "
        "(the middle)."
    ),
]
Sheet = Annotated[
    Path | None,
    typer.Option(help="Picture file (.png, .pdf, ...) for a contact sheet: before and after, side by side."),
]
Size = Annotated[
    int | None,
    typer.Option(help="Side of the images, if the diffusion model's is another: they are resized inside."),
]
BatchSize = Annotated[int, typer.Option(help="Images purified together.")]
PrecisionName = Annotated[str, typer.Option(help="Of the networks: fp32, tf32, bf16 or fp16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite results of other runs.")]


def purify(
    inputs: Inputs,
    out: Out,
    denoiser: DenoiserName = None,
    classifier: ClassifierName = None,
    method: MethodName = None,
    preset: PresetName = None,
    t: Time = None,
    dt: Step = None,
    steps: Steps = None,
    scale: Scale = None,
    settings: Settings = None,
    seed: Seed = 0,
    draws: Draws = 1,
    ids: Ids = "position",
    key: Key = None,
    fit: Fit = "tile",
    sheet: Sheet = None,
    size: Size = None,
    batch_size: BatchSize = 16,
    precision: PrecisionName = "fp32",
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Purify images and write them to OUT under the same names and in the same format.

    Pictures become upright PNG with 8 bits per channel, so that nothing is lost to compression; arrays keep dtype,
    range and layout, and the other arrays of an .npz are copied. Pictures may have any size and keep it (--fit). Pixels
    outside [0, 1] are clamped. What cannot be read is named at the end and stops nothing. Interrupt at any time: the
    same command continues and ends with the same bytes. Files of another run are overwritten with --force only.

    Example: fastpure purify photos --out clean --sheet sheet.png
    """
    from ..purify.files import FITS, carry_out, prepare
    from ..purify.files.inputs import remarks

    chosen = {"t": t, "dt": dt, "steps": steps, "scale": scale}
    given = {**{name: value for name, value in chosen.items() if value is not None}, **_assigned(settings)}
    purifier, networks = _purifier(denoiser, classifier, method, preset, given, size, seed, precision, device)
    run = prepare(
        inputs,
        out,
        purifier,
        networks,
        fit=fit,
        draws=draws,
        ids=ids,
        key=key,
        batch_size=batch_size,
        sheet=sheet,
        spelt=lambda name: f"--{name.replace('_', '-')}",
    )
    usable = [source for i, source in enumerate(run.sources) if i not in run.broken]
    print("".join(f"{line}\n" for line in remarks(inputs, usable)), end="")
    if run.apart:
        print(f"{len(run.apart)} pictures of another size than {_size(purifier)}: {FITS[fit]}")
    print(f"{run.total} images with {purifier.method} into {out}")
    found = carry_out(run, purifier, force, True, sheet)
    if found.new < run.total:
        print(f"continued: {run.total - found.new} were there, {found.new} purified now")
    print(f"wrote {out}" + ("" if sheet is None else f" and {sheet}"))
    for _, reason in found.refused:
        print(f"not purified: {reason}", file=sys.stderr)
    if found.refused:
        raise typer.Exit(1)


def _size(purifier: Purifier) -> str:
    _, height, width = purifier.image_shape
    return f"{width}x{height}"


def _purifier(
    denoiser: str | None,
    classifier: str | None,
    method: str | None,
    preset: str | None,
    given: dict[str, Any],
    size: int | None,
    seed: int,
    precision: str,
    device: str,
) -> tuple[Purifier, dict[str, str]]:
    """The purifier on its device, and what its networks are."""
    from ..checkpoints import load_denoiser
    from ..errors import mistake
    from ..presets import PRESETS
    from ..purify import Purifier, ResizedPurifier
    from ..purify.files import PHOTO_DENOISER, conventions, fingerprint, photo_method
    from ..purify.files.run import CONVENTIONS

    checked_device(device)
    if preset is not None and method is not None:
        raise ValueError(mistake("--method", "left out with --preset, which has its own", repr(method)))
    published = PRESETS[preset] if preset is not None else None
    if denoiser is None and published is not None:
        raise ValueError(mistake("--denoiser", f"given with --preset: {published.weights}", "none"))
    name = denoiser or PHOTO_DENOISER
    model = load_denoiser(name) if published is None else published.load_denoiser(name)
    networks = {"denoiser": fingerprint(model), CONVENTIONS: conventions(model)}
    guide = None
    if classifier is not None:
        guide, networks["classifier"] = _guide(classifier, published, size, model.image_shape[1], method)
    if published is None:
        unsaid = denoiser is None and method is None and not given and guide is None
        recipe = photo_method() if unsaid else _method(method or "diffpure", guide, given)
    elif guide is not None and published.recipe.takes is None:
        raise ValueError(mistake("--classifier", f"left out: {preset} is not guided", repr(classifier)))
    else:
        recipe = published.method(
            guide, **_stepped(published.recipe.name, given, dict(published.recipe.settings))
        )
    options: dict[str, Any] = {"seed": seed, "precision": precision}
    if size is None:
        return Purifier(model, recipe, **options).to(device), networks
    return ResizedPurifier(model, recipe, size, **options).to(device), networks


def _guide(
    name: str, published: Preset | None, size: int | None, inner: int, method: str | None
) -> tuple[nn.Module, str]:
    """The guiding network for images of side ``inner``, and its fingerprint; an energy where the method takes one."""
    from ..checkpoints import load_energy
    from ..classifiers import Resized, load_classifier
    from ..methods import METHODS
    from ..purify.files import fingerprint

    takes = published.recipe.takes if published is not None else None
    if takes == "energy" or (method in METHODS and METHODS[method].spec.network == "energy"):
        energy = load_energy(name)
        return energy, fingerprint(energy)
    file = published is not None and Path(name).is_file()
    network = published.load_classifier(name) if published is not None and file else load_classifier(name)
    if published is not None:
        return published.target.guide(network, inner), fingerprint(network)
    # A classifier of the images that come in sees the diffusion model's resized to its own size.
    return network if size in (None, inner) else Resized(network, size or inner), fingerprint(network)


def _method(name: str, guide: nn.Module | None, given: dict[str, Any]) -> Method:
    from ..errors import mistake, one_of
    from ..methods import METHODS, make, spec

    takes = spec(one_of("--method", name, METHODS))
    known, given = dict(takes.settings), _stepped(name, given)
    for setting in given:
        if setting not in known:
            raise ValueError(mistake(f"settings of {name}", f"among {', '.join(known)}", setting))
    if guide is None:
        if takes.required:
            raise ValueError(mistake("--classifier", f"given: {name} is guided by it", "none"))
        return make(name, **given)
    if takes.network is None:
        raise ValueError(mistake("--classifier", f"left out: {name} is not guided", "one"))
    return make(name, **{takes.network: guide}, **given)


def _stepped(name: str, given: dict[str, Any], published: dict[str, Any] | None = None) -> dict[str, Any]:
    settings = stepped(name, given, published)
    if "steps" in settings:
        raise ValueError(f"`--steps` has no effect: {name} has no such setting")
    return settings


def _assigned(settings: list[str] | None) -> dict[str, Any]:
    """The method's settings; a bare NAME=VALUE, as it was once written, still is one."""
    for text in settings or []:
        name, equals, _ = text.partition("=")
        if equals and name.strip().isidentifier():
            print(f"fastpure: --set {text} is now written --set method.{text}", file=sys.stderr)
    extra = assigned(settings, BARE)
    others = [kind for kind, own in extra.items() if own and kind != "method"]
    if others:
        raise ValueError(f"`--set {others[0]}...` has no effect: purify has settings of the method only")
    return extra["method"]
