"""Options that name an experiment, shared by ``attack``, ``evaluate`` and ``sweep``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from ..errors import RunInterrupted
from ..signatures import arguments
from . import names
from .values import KINDS, assigned, number

Data = Annotated[
    str,
    typer.Option(
        help="Data set: digits needs no file, others need --data-path.",
        autocompletion=names.among(names.DATASETS),
    ),
]
DataPath = Annotated[Path | None, typer.Option(help="File or folder with the images.")]
Key = Annotated[
    str | None,
    typer.Option(help="For --data arrays: which array of the .npz holds the images, if several could."),
]
N = Annotated[
    int | None, typer.Option(help="How many test images, chosen as in the literature. (default: all)")
]
DataSeed = Annotated[int, typer.Option(help="Which N images: the seed of their choice.")]
DenoiserFile = Annotated[
    str | None,
    typer.Option(
        "--denoiser",
        help="Diffusion model: a bundled or downloaded name, a file, or hf:OWNER/REPOSITORY. "
        "(default: the data set's bundled one)",
        autocompletion=names.among(names.DENOISERS),
    ),
]
ClassifierName = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        help="Classifier: a bundled name or a file. (default: the data set's bundled one)",
        autocompletion=names.among(names.CLASSIFIERS),
    ),
]
ClassifierFile = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        help="Classifier: a bundled or downloaded name, a file, hf:OWNER/REPOSITORY, or an architecture for --weights "
        "(torchvision:NAME, timm:NAME, wrn-28-10, ...); diffusion:FILE is a class-conditional diffusion model. "
        "(default: the data set's bundled one)",
        autocompletion=names.among(names.CLASSIFIERS),
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="State dict file of the architecture that --classifier names, or pretrained for the library's own."
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(help="How many classes --weights tells apart, if not as many as its library says."),
]
Normalise = Annotated[
    str | None,
    typer.Option(
        help="What the classifier was trained to see: none, cifar10, cifar100, imagenet, or mean and deviation per "
        "channel as 0.5,0.5,0.5:0.25,0.25,0.25. (default: what its file or library says)"
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="For --data folder and imagenet: pictures become squares of this side. (default: as they are; 224)"
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="Purification: coup, diffpure, ddpm, ...; none is the bare classifier. (default: coup)",
        autocompletion=names.among((*names.METHODS, "none")),
    ),
]
T = Annotated[
    float | None, typer.Option("--t", help="Diffusion time from which images are purified, 0 to 1.")
]
Steps = Annotated[int | None, typer.Option(help="Steps of the reverse process.")]
Step = Annotated[
    float | None, typer.Option("--dt", help="Length of a step in diffusion time, instead of --steps.")
]
Scale = Annotated[float | None, typer.Option(help="Guidance scale.")]
AttackName = Annotated[
    str | None,
    typer.Option(
        "--attack",
        help="Attack: pgd, apgd-ce, autoattack, ...; a run file (.sqlite) for the images found in it on another "
        "defence; salt_and_pepper or gaussian corrupts at random; none judges the originals only. (default: pgd)",
        autocompletion=names.among((*names.ATTACKS, *names.CONTROLS, "none")),
    ),
]
Norm = Annotated[
    str | None,
    typer.Option(
        help="Norm of the budget: Linf, L2 or L1. (default: Linf)", autocompletion=names.among(names.NORMS)
    ),
]
Eps = Annotated[
    float | None,
    typer.Option(help="Radius of the budget, pixels in [0, 1]; fractions such as 8/255 are fine."),
]
NIter = Annotated[int | None, typer.Option(help="Iterations of the attack.")]
EotIter = Annotated[int | None, typer.Option(help="Noise draws averaged per iteration.")]
Start = Annotated[
    Path | None,
    typer.Option(
        help="Run file whose adversarial images the attack begins at, instead of at random points (pgd, apgd-...)."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="<setting>",
        help="Any other setting, as method.NAME=VALUE, attack.NAME=VALUE, protocol.NAME=VALUE or classifier.NAME=VALUE "
        "(of a diffusion classifier); may be repeated. "
        "Example: --set attack.gradient=bpda --set method.label=input",
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="A published experiment: its data, method and attack. Give --data-path, --denoiser and --classifier.",
        autocompletion=names.among(names.PRESETS),
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the defence's noise.")]
PrecisionName = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Networks compute in fp32, tf32, bf16 or fp16.",
        autocompletion=names.among(names.PRECISIONS),
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
BatchSize = Annotated[int, typer.Option(help="Images attacked together and saved in one go.")]
Rows = Annotated[
    int | None, typer.Option(help="Most (image, draw) pairs in one network call. (default: the attack's)")
]

RUN = "Run"
PANELS = {
    **dict.fromkeys(("data", "data_path", "key", "n", "data_seed"), "Data"),
    **dict.fromkeys(
        ("preset", "denoiser", "classifier", "weights", "num_classes", "normalise", "size"), "Defence"
    ),
    **dict.fromkeys(("method", "t", "steps", "dt", "scale", "seed", "precision"), "Defence"),
    **dict.fromkeys(("attack", "norm", "eps", "n_iter", "eot_iter", "start"), "Attack"),
}
"""Headings of ``--help`` for the options of an experiment; the others are about the run."""


TrackerName = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        help="Send what is known so far to tensorboard or wandb too (needs the extra of that name).",
    ),
]


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; None stands for "not given"."""

    data: str = "digits"
    data_path: Path | None = None
    key: str | None = None
    n: int | None = None
    data_seed: int = 0
    denoiser: str | None = None
    classifier: str | None = None
    weights: str | None = None
    num_classes: int | None = None
    normalise: str | None = None
    size: int | None = None
    method: str | None = None
    attack: str | None = None
    preset: str | None = None
    seed: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    rows: int | None = None
    given: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in KINDS})


def request(
    data: Data = "digits",
    data_path: DataPath = None,
    key: Key = None,
    n: N = None,
    data_seed: DataSeed = 0,
    denoiser: DenoiserFile = None,
    classifier: ClassifierFile = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    normalise: Normalise = None,
    size: Size = None,
    method: Method = None,
    t: T = None,
    steps: Steps = None,
    dt: Step = None,
    scale: Scale = None,
    attack: AttackName = None,
    norm: Norm = None,
    eps: Eps = None,
    n_iter: NIter = None,
    eot_iter: EotIter = None,
    start: Start = None,
    settings: Set = None,
    preset: PresetName = None,
    seed: Seed = 0,
    precision: PrecisionName = "fp32",
    device: Device = "cpu",
    rows: Rows = None,
) -> Request:
    """What these options ask for. Raises ValueError for a setting that cannot be read."""
    given: dict[str, Any] = {
        "steps": steps,
        "norm": norm,
        "n_iter": n_iter,
        "eot_iter": eot_iter,
        "start": start,
    }
    given |= {"t": t, "dt": dt, "scale": scale, "eps": eps}
    return Request(
        data=data,
        data_path=data_path,
        key=key,
        n=n,
        data_seed=data_seed,
        denoiser=denoiser,
        classifier=classifier,
        weights=weights,
        num_classes=num_classes,
        normalise=normalise,
        size=size,
        method=method,
        attack=attack,
        preset=preset,
        seed=seed,
        precision=precision,
        device=device,
        rows=rows,
        given={name: value for name, value in given.items() if value is not None},
        extra=assigned(settings),
    )


def normalisation(text: str | None) -> Any:
    """The value of --normalise as `fastpure.load_classifier` takes it: a name, or (mean, std).

    Numbers are "m,m,m:s,s,s" and may be fractions; "m,m,m/s,s,s", as `doctor` and `convert` once had it, is still read.

    Raises:
        ValueError: numbers of another form.
    """
    if text is None or not {":", "/", ","} & set(text):
        return text
    between = ":" if ":" in text else "/"
    try:
        mean, std = (tuple(number(word) for word in part.split(",")) for part in text.split(between))
    except ValueError:
        expected = "a name, or numbers per channel as 0.5,0.5,0.5:0.25,0.25,0.25"
        raise ValueError(f"`--normalise` must be {expected}, got {text!r}") from None
    return mean, std


def experiment_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command(wanted, **own)`` all options of ``request`` before its own, and call it with their request."""

    def parameters(function: Callable[..., Any]) -> list[Parameter]:
        hints = get_type_hints(function, include_extras=True)
        return [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
            for name, default in arguments(function).items()
        ]

    shared, own = parameters(request), parameters(command)[1:]

    def wrapped(**values: Any) -> None:
        wanted = request(**{p.name: values.pop(p.name) for p in shared})
        command(wanted, **values)

    merged = [*(_placed(p, PANELS.get(p.name, RUN)) for p in shared), *(_placed(p, RUN) for p in own)]
    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    wrapped.__signature__ = Signature(merged)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in merged}
    return wrapped


def _placed(parameter: Parameter, panel: str) -> Parameter:
    """The same below another heading of ``--help``."""
    kind, *marks = get_args(parameter.annotation)
    info = copy(marks[0])
    info.rich_help_panel = panel
    return parameter.replace(annotation=Annotated[kind, info])


@contextmanager
def interruptible() -> Iterator[None]:
    """End the command with its farewell and exit status 130 when a run is interrupted."""
    try:
        yield
    except RunInterrupted as stop:
        typer.echo(f"fastpure: {stop}", err=True)
        raise typer.Exit(130) from stop


def checked_device(name: str) -> str:
    """``name`` if torch can compute there.

    Raises:
        ValueError: not a device, or one this torch cannot use.
    """
    import torch

    from ..errors import mistake

    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(mistake("device", "cpu, cuda or cuda:N", repr(name))) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(mistake("device", "cpu", repr(name), "This torch sees no CUDA device."))
    return name
