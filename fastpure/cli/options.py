"""What `attack`, `evaluate` and `sweep` share: options that name an experiment, and the experiment they name."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from ..attacks import Attack
    from ..data import Dataset

Data = Annotated[str, typer.Option(help="Data set: digits needs no file, others need --data-path.")]
DataPath = Annotated[Path | None, typer.Option(help="File or folder with the images.")]
N = Annotated[
    int | None, typer.Option(help="How many test images, chosen as in the literature. (default: all)")
]
DataSeed = Annotated[int, typer.Option(help="Which N images: the seed of their choice.")]
DenoiserFile = Annotated[
    str | None,
    typer.Option("--denoiser", help="Diffusion model: a bundled name or a file. (default: digits)"),
]
ClassifierFile = Annotated[
    str | None, typer.Option("--classifier", help="Classifier: a bundled name or a file. (default: digits)")
]
Method = Annotated[
    str | None,
    typer.Option(
        help="Purification: coup, diffpure, ddpm, ...; none is the bare classifier. (default: coup)"
    ),
]
T = Annotated[str | None, typer.Option("--t", help="Diffusion time from which images are purified, 0 to 1.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the reverse process.")]
Scale = Annotated[str | None, typer.Option(help="Guidance scale.")]
AttackName = Annotated[
    str | None,
    typer.Option(
        "--attack",
        help="Attack: pgd, apgd-ce, autoattack, ...; salt_and_pepper or gaussian corrupts at random; none judges "
        "the originals only. (default: pgd)",
    ),
]
Norm = Annotated[str | None, typer.Option(help="Norm of the budget: Linf, L2 or L1. (default: Linf)")]
Eps = Annotated[
    str | None, typer.Option(help="Radius of the budget, pixels in [0, 1]; fractions such as 8/255 are fine.")
]
NIter = Annotated[int | None, typer.Option(help="Iterations of the attack.")]
EotIter = Annotated[int | None, typer.Option(help="Noise draws averaged per iteration.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other setting of method or attack, as method.NAME=VALUE or attack.NAME=VALUE; may be repeated. "
        "Example: --set attack.gradient=bpda --set method.label=input",
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="A published experiment: its data, method and attack. Give --data-path, --denoiser and --classifier.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the defence's noise.")]
PrecisionName = Annotated[
    str, typer.Option("--precision", help="Networks compute in fp32, tf32, bf16 or fp16.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
BatchSize = Annotated[int, typer.Option(help="Images attacked together and saved in one go.")]
Rows = Annotated[
    int | None, typer.Option(help="Most (image, draw) pairs in one network call. (default: the attack's)")
]

DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"t": 0.15, "steps": 12, "scale": 2.0, "eps": 0.2, "n_iter": 20, "eot_iter": 4},
}
"""Settings that suit a bundled data set, used where none is given: those of `fastpure demo`."""

KINDS = ("method", "attack")


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; None stands for "not given"."""

    data: str = "digits"
    data_path: Path | None = None
    n: int | None = None
    data_seed: int = 0
    denoiser: str | None = None
    classifier: str | None = None
    method: str | None = None
    attack: str | None = None
    preset: str | None = None
    seed: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    rows: int | None = None
    given: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in KINDS})


@dataclass(frozen=True)
class Experiment:
    """What a request names."""

    defense: nn.Module
    dataset: Dataset
    attack: Attack | None
    label: str


def request(settings: list[str] | None, *, given: dict[str, Any], **named: Any) -> Request:
    """The request of these options; ``given`` are the shortcuts t, steps, scale, norm, eps, n_iter, eot_iter."""
    numbers = {
        name: number(name, value) if isinstance(value, str) and name != "norm" else value
        for name, value in given.items()
        if value is not None
    }
    extra: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for text in settings or []:
        path, equals, value = text.partition("=")
        kind, dot, name = path.strip().partition(".")
        if not equals or not dot or kind not in KINDS or not name:
            raise ValueError(f"`--set` must be method.NAME=VALUE or attack.NAME=VALUE, got {text!r}")
        extra[kind][name.replace("-", "_")] = literal(value.strip())
    return Request(given=numbers, extra=extra, **named)


def literal(text: str) -> Any:
    """A number, fraction, True, False, None or list as written; anything else is text."""
    try:
        return float(Fraction(text)) if "/" in text else ast.literal_eval(text)
    except (ValueError, SyntaxError, ZeroDivisionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def number(name: str, text: str) -> float:
    """A decimal number or fraction."""
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError):
        option = "--" + name.replace("_", "-")
        raise ValueError(f"`{option}` must be a number or a fraction such as 8/255, got {text!r}") from None


def build(wanted: Request) -> Experiment:
    """Load and assemble what a request names; mistakes are ValueErrors that name the option."""
    if wanted.preset is not None:
        return _from_preset(wanted)
    from ..checkpoints import load_denoiser
    from ..classifiers import load_classifier
    from ..data import load_dataset
    from ..purify import Defense, Purifier

    device = checked_device(wanted.device)
    dataset = load_dataset(wanted.data, "test", path=wanted.data_path)
    if wanted.n is not None:
        dataset = dataset.subset(wanted.n, wanted.data_seed)
    classifier = load_classifier(_needed(wanted, "classifier")).to(device)
    name = wanted.method or "coup"
    attack, attack_name = _attack(wanted)
    if name == "none":
        _refuse_unused(wanted, attack, {}, "method")
        return Experiment(classifier, dataset, attack, f"{dataset.name}-none-{attack_name}")
    denoiser = load_denoiser(_needed(wanted, "denoiser")).to(device)
    settings = method_settings(name, wanted)
    _refuse_unused(wanted, attack, settings, "method")
    method = make_method(name, classifier, settings)
    purifier = Purifier(denoiser, method, seed=wanted.seed, precision=wanted.precision)
    return Experiment(Defense(purifier, classifier), dataset, attack, f"{dataset.name}-{name}-{attack_name}")


def method_settings(name: str, wanted: Request) -> dict[str, Any]:
    """Settings of the method: those given, then those that suit the data set where the method has them."""
    from ..errors import one_of
    from ..purify.methods import METHODS

    known = inspect.signature(METHODS[one_of("method", name, METHODS)]).parameters
    chosen = (
        {**DEFAULTS.get(wanted.data, {}), **wanted.given} if wanted.preset is None else dict(wanted.given)
    )
    settings = {key: chosen[key] for key in ("t", "scale") if key in chosen and key in known}
    if "steps" in chosen and "n_steps" in known:
        settings["n_steps"] = chosen["steps"]
    elif "steps" in chosen and "dt" in known:
        t = settings.get("t", known["t"].default)
        settings["dt"] = t / _positive_steps(chosen["steps"])
    for key, value in wanted.extra["method"].items():
        if key not in known or key == "classifier":
            listed = ", ".join(k for k in known if k != "classifier")
            raise ValueError(f"`--set method.{key}`: {name} has no such setting; it has {listed}")
        settings[key] = value
    return settings


def make_method(name: str, classifier: nn.Module, settings: dict[str, Any]) -> Any:
    """The method, guided by the defended classifier where it takes one."""
    from ..purify.methods import METHODS

    function: Any = METHODS[name]
    takes = "classifier" in inspect.signature(function).parameters
    return function(classifier, **settings) if takes else function(**settings)


def checked_device(name: str) -> str:
    """``name`` if torch can compute there."""
    import torch

    from ..errors import mistake

    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(mistake("device", "cpu, cuda or cuda:N", repr(name))) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(mistake("device", "cpu", repr(name), "This torch sees no CUDA device."))
    return name


def _attack(wanted: Request) -> tuple[Attack | None, str]:
    from ..attacks import ATTACKS
    from ..errors import one_of
    from ..evaluate import CONTROLS

    name = wanted.attack or "pgd"
    kinds: dict[str, Any] = {**ATTACKS, **CONTROLS}
    if one_of("attack", name, (*kinds, "none")) == "none":
        return None, "clean"
    known = [f.name for f in fields(kinds[name])]
    chosen = {**DEFAULTS.get(wanted.data, {}), **wanted.given}
    settings = {
        key: chosen[key] for key in ("norm", "eps", "n_iter", "eot_iter") if key in chosen and key in known
    }
    if wanted.given.get("norm", "Linf") != "Linf" and "eps" not in wanted.given:
        settings.pop("eps", None)  # what suits the data set was chosen for Linf
    for key, value in wanted.extra["attack"].items():
        if key not in known:
            raise ValueError(f"`--set attack.{key}`: {name} has no such setting; it has {', '.join(known)}")
        settings[key] = tuple(value) if isinstance(value, list) else value
    if wanted.rows is not None:
        settings["batch_size"] = wanted.rows
    return kinds[name](**settings), name


def _refuse_unused(wanted: Request, attack: Any, settings: dict[str, Any], kind: str) -> None:
    """A setting that nothing reads is a mistake, not a wish."""
    named = {f.name for f in fields(attack)} if attack is not None else set()
    for key in wanted.given:
        used = key in named or key in settings or (key == "steps" and {"dt", "n_steps"} & settings.keys())
        if not used:
            option = "--" + key.replace("_", "-")
            raise ValueError(
                f"`{option}` has no effect: neither the method nor the attack has such a setting"
            )
    if kind == "method" and not settings and wanted.extra["method"]:
        raise ValueError("`--set method...` has no effect without a method")


def _needed(wanted: Request, what: str) -> str:
    source = getattr(wanted, what)
    if source is not None:
        return str(source)
    if wanted.preset is None and wanted.data == "digits":
        return "digits"
    raise ValueError(f"`--{what}` must be given: the file of the {what}")


def _positive_steps(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"`--steps` must be at least 1, got {steps}")
    return steps


def _from_preset(wanted: Request) -> Experiment:
    from ..presets import PRESETS

    preset = PRESETS[str(wanted.preset)]
    if wanted.method is not None:
        raise ValueError("`--method` must be left out with --preset, which names its own")
    device = checked_device(wanted.device)
    dataset = preset.load_dataset(wanted.data_path, wanted.data_seed or None)
    if wanted.n is not None:
        dataset = dataset.select(range(min(wanted.n, len(dataset))))
    denoiser = preset.load_denoiser(_needed(wanted, "denoiser")).to(device)
    classifier = preset.load_classifier(_needed(wanted, "classifier")).to(device)
    changes = {**method_settings(preset.recipe.name, wanted)}
    options = {"seed": wanted.seed, "precision": wanted.precision}
    defense = preset.defense(denoiser, classifier, changes=changes, **options)
    attack, name = _preset_attack(preset, wanted)
    return Experiment(defense, dataset, attack, f"{preset.name}-{name}")


def _preset_attack(preset: Any, wanted: Request) -> tuple[Attack | None, str]:
    """The preset's attack of the wanted name, else its first with exact gradients, with what was given changed."""
    if wanted.attack == "none":
        return None, "clean"
    specs = sorted(preset.attack_specs, key=lambda spec: spec.role != "adaptive")
    named = [spec for spec in specs if wanted.attack in (None, spec.name)]
    if not named:
        return _attack(wanted)
    changes = {key: wanted.given[key] for key in ("norm", "eps", "n_iter", "eot_iter") if key in wanted.given}
    changes.update(wanted.extra["attack"])
    if wanted.rows is not None:
        changes["batch_size"] = wanted.rows
    return named[0].build(**changes), named[0].name
