"""`fastpure purify`: images, folders and arrays in, purified ones out."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import checked_device

if TYPE_CHECKING:
    from torch import nn

    from ..methods import Method
    from ..nets import Denoiser
    from ..presets import Preset
    from ..purify import Purifier


Inputs = Annotated[
    list[Path],
    typer.Argument(metavar="IN...", help="Image files, folders of them (read recursively), .npy or .npz."),
]
Out = Annotated[Path, typer.Option(help="Folder for the results: same names, same order.")]
DenoiserName = Annotated[
    str, typer.Option(help="Diffusion model: a bundled name (digits) or a file of weights.")
]
ClassifierName = Annotated[
    str | None,
    typer.Option(help="Network that guides methods such as coup: a bundled name or a file of weights."),
]
MethodName = Annotated[
    str | None, typer.Option(help="Name of the method, such as diffpure (the default), coup, ddpm.")
]
PresetName = Annotated[
    str | None,
    typer.Option(help="Published configuration, such as coup-cifar10-linf, instead of --method."),
]
Time = Annotated[float | None, typer.Option(help="Diffusion time from which images are purified.")]
Step = Annotated[float | None, typer.Option(help="Step in diffusion time.")]
Steps = Annotated[int | None, typer.Option(help="Number of steps, for methods that take it.")]
Scale = Annotated[float | None, typer.Option(help="Strength of the guidance.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the method; may be repeated."),
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
    denoiser: DenoiserName,
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
    size: Size = None,
    batch_size: BatchSize = 16,
    precision: PrecisionName = "fp32",
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Purify images and write them to OUT under the same names and in the same format.

    Pictures become upright PNG with 8 bits per channel, so that nothing is lost to compression; arrays keep dtype,
    range and layout, and the other arrays of an .npz are copied. Pixels outside [0, 1] are clamped. Interrupt at any
    time: the same command continues and ends with the same bytes. Files of another run are overwritten with --force
    only.

    Example: fastpure purify photos --out purified --denoiser digits --method diffpure --t 0.1
    """
    import torch

    from .purify_inputs import find_sources, remarks
    from .purify_run import PurifyRun

    _check(ids, draws, batch_size)
    _keep_apart(inputs, out)
    sources = tuple(find_sources(inputs, key))
    print("".join(f"{line}\n" for line in remarks(inputs, sources)), end="")
    chosen = {"t": t, "dt": dt, "n_steps": steps, "scale": scale}
    given = {**{name: value for name, value in chosen.items() if value is not None}, **_parsed(settings)}
    purifier, networks = _purifier(denoiser, classifier, method, preset, given, size, seed, precision, device)
    run = PurifyRun(
        sources,
        out,
        {
            **_environment(),
            "method": str(purifier.method),
            "networks": networks,
            "seed": seed,
            "draws": draws,
            "ids": ids,
            "key": key,
            "image_shape": list(purifier.image_shape),
            "batch_size": batch_size,
            "precision": precision,
            "device": torch.device(device).type,
            "inputs": {str(source.name): source.digest() for source in sources},
        },
        purifier.image_shape,
        batch_size,
        draws,
        ids,
    )
    run.check()
    print(f"{run.total} images with {purifier.method} into {out}")
    _execute(run, purifier, force)


def _execute(run: Any, purifier: Purifier, force: bool) -> None:
    import torch
    from tqdm import tqdm

    def work(images: torch.Tensor, sample_ids: list[int], draw: int) -> torch.Tensor:
        with torch.no_grad():
            return purifier(images.to(purifier.device), sample_ids, draw)

    with run.opened(force) as continued:
        # Not on a terminal a line every quarter of a minute is enough.
        pause = 0.1 if sys.stderr.isatty() else 15.0
        with tqdm(total=run.total, unit="image", mininterval=pause, file=sys.stderr) as bar:
            purified = run.execute(work, bar.update)
    if continued:
        print(f"continued: {run.total - purified} were there, {purified} purified now")
    print(f"wrote {run.out}")


def _check(ids: str, draws: int, batch_size: int) -> None:
    from ..errors import one_of, whole

    one_of("--ids", ids, ("position", "names"))
    whole("--draws", draws, 1, 2**20)
    whole("--batch-size", batch_size, 1)


def _keep_apart(inputs: list[Path], out: Path) -> None:
    """Results inside an input folder would be inputs of the same command given again."""
    from ..errors import mistake

    for path in inputs:
        if path.is_dir() and path.resolve() in (out.resolve(), *out.resolve().parents):
            raise ValueError(mistake("--out", "a folder outside of the inputs", f"{out}, in {path}"))


def _purifier(
    denoiser: str,
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
    from .purify_run import CONVENTIONS

    checked_device(device)
    if preset is not None and method is not None:
        raise ValueError(mistake("--method", "left out with --preset, which has its own", repr(method)))
    published = PRESETS[preset] if preset is not None else None
    model = load_denoiser(denoiser) if published is None else published.load_denoiser(denoiser)
    networks = {"denoiser": _fingerprint(model), CONVENTIONS: _conventions(model)}
    guide = None
    if classifier is not None:
        guide, networks["classifier"] = _guide(classifier, published, size, model.image_shape[1], method)
    if published is None:
        recipe = _method(method or "diffpure", guide, given)
    elif guide is not None and published.recipe.takes is None:
        raise ValueError(mistake("--classifier", f"left out: {preset} is not guided", repr(classifier)))
    else:
        recipe = published.method(guide, **given)
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

    takes = published.recipe.takes if published is not None else None
    if takes == "energy" or (method in METHODS and METHODS[method].spec.network == "energy"):
        energy = load_energy(name)
        return energy, _fingerprint(energy)
    file = published is not None and Path(name).is_file()
    network = published.load_classifier(name) if published is not None and file else load_classifier(name)
    if published is not None:
        return published.target.guide(network, inner), _fingerprint(network)
    # A classifier of the images that come in sees the diffusion model's resized to its own size.
    return network if size in (None, inner) else Resized(network, size or inner), _fingerprint(network)


def _method(name: str, guide: nn.Module | None, given: dict[str, Any]) -> Method:
    from ..errors import mistake, one_of
    from ..methods import METHODS, make, spec

    takes = spec(one_of("--method", name, METHODS))
    known = dict(takes.settings)
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


def _parsed(settings: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE with Python's literals; anything else is text."""
    from ..errors import mistake

    parsed = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(mistake("--set", "NAME=VALUE", repr(setting)))
        try:
            parsed[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[name] = text
    return parsed


def _environment() -> dict[str, str]:
    """Versions that results may depend on in their last bits."""
    import torch

    import fastpure

    return {"fastpure": fastpure.__version__, "torch": torch.__version__}


def _conventions(denoiser: Denoiser) -> str:
    """SHA-256 of what a denoiser is besides its weights; files of the same weights may say different things."""
    text = json.dumps(denoiser.describe(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
