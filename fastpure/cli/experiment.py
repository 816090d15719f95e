"""The experiment that options name: networks, method, attack and data, loaded and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .demo_settings import SETTINGS
from .images import test_images
from .options import Request, checked_device, normalisation

if TYPE_CHECKING:
    from torch import nn

    from ..attacks import Attack
    from ..data import Dataset
    from ..presets import Preset

NAMES = ("t", "steps", "scale", "solver", "eps", "n_iter", "eot_iter")
DEFAULTS: dict[str, dict[str, Any]] = {
    data: {name: getattr(setting, name) for name in NAMES} for data, setting in SETTINGS.items()
}
"""Settings that suit a data set and its bundled networks, used where none is given: those of ``fastpure demo``."""

TIMED = ("diffpure", "diffpure_ode", "coup", "coup_unguided", "ddpm", "ddim", "dpm_solver")
"""Methods whose t and steps mean what ``DEFAULTS`` means."""

ATTACK_OPTIONS = ("norm", "eps", "n_iter", "eot_iter", "start")
"""Options that are settings of the attack under the same name."""

DIFFUSION = "diffusion:"
"""How the names of classifiers begin that are a class-conditional diffusion model's."""

DIFFUSION_SETTINGS = ("n_levels", "levels", "weight", "spread", "sigma", "temperature", "batch_size")
"""Their settings; the seed is that of the defence."""

RUN_FILE = ".sqlite"
"""How the names of run files end; as an attack, their adversarial images."""

PUBLISHED = "published"
"""In place of the name of a protocol: the rule that a preset was published with."""


@dataclass(frozen=True)
class Experiment:
    """What a request names."""

    defense: nn.Module
    dataset: Dataset
    attack: Attack | None
    label: str


def build(wanted: Request) -> Experiment:
    """Load and assemble what a request names; mistakes are ValueErrors that name the option."""
    if wanted.preset is not None:
        return _from_preset(wanted)
    from ..checkpoints import load_denoiser
    from ..purify import Defense, Purifier

    device = checked_device(wanted.device)
    dataset = test_images(wanted.data, wanted.data_path, key=wanted.key, size=wanted.size)
    if wanted.n is not None:
        dataset = dataset.subset(wanted.n, wanted.data_seed)
    classifier = _classifier(wanted).to(device)
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


def _classifier(wanted: Request) -> nn.Module:
    """The classifier of a file, or by Bayes' rule with the class-conditional diffusion model in it."""
    from ..checkpoints import load_denoiser
    from ..classifiers import load_classifier
    from ..methods import spec
    from ..purify import DiffusionClassifier, NoisedDiffusionClassifier

    source, settings = _needed(wanted, "classifier"), dict(wanted.extra["classifier"])
    if not source.startswith(DIFFUSION):
        if settings:
            raise ValueError(
                f"`--set classifier.{next(iter(settings))}` has no effect: it is for --classifier {DIFFUSION}FILE"
            )
        return load_classifier(source, **classifier_options(wanted))
    refuse_options(classifier_options(wanted), f"--classifier {DIFFUSION}...")
    name = wanted.method or "coup"
    if name != "none" and spec(name).network is not None and spec(name).required:
        raise ValueError(
            f"`--method` must be one without a guiding classifier for {DIFFUSION}..., got {name}"
        )
    noised = settings.pop("n_noised", None)
    for key in settings:
        if key not in DIFFUSION_SETTINGS:
            known = (*DIFFUSION_SETTINGS, "n_noised")
            raise ValueError(_no_setting(f"classifier.{key}", "a diffusion classifier", known))
    denoiser = load_denoiser(source.removeprefix(DIFFUSION))
    model = DiffusionClassifier(denoiser, seed=wanted.seed, **settings)
    return model if noised is None else NoisedDiffusionClassifier(model, noised)


def classifier_options(wanted: Request) -> dict[str, Any]:
    """What was given of a classifier besides its name, as `fastpure.load_classifier` takes it."""
    normalise = normalisation(wanted.normalise)
    options = {"weights": wanted.weights, "num_classes": wanted.num_classes, "normalise": normalise}
    return {name: value for name, value in options.items() if value is not None}


def refuse_options(options: Mapping[str, Any], beside: str) -> None:
    """Raise ValueError for options that nothing reads."""
    for name in options:
        raise ValueError(f"`--{name.replace('_', '-')}` has no effect with {beside}")


def method_settings(name: str, wanted: Request, published: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of the method: those given, then those that suit the data set where the method has them.

    ``published`` are a preset's, which the result is to change.
    """
    from ..methods import spec

    takes = spec(name)
    known = dict(takes.settings)
    suits = wanted.preset is None and name in TIMED
    chosen = {**(_suiting(wanted) if suits else {}), **wanted.given}
    if "dt" in wanted.given and "steps" not in wanted.given:
        chosen.pop("steps", None)
    walked = stepped(name, chosen, published)
    settings: dict[str, Any] = {
        key: walked[key]
        for key in ("t", "scale", "solver", "n_steps", "dt")
        if key in walked and key in known
    }
    for key, value in wanted.extra["method"].items():
        if key not in takes.arguments:
            raise ValueError(_no_setting(f"method.{key}", name, takes.arguments))
        settings[key] = value
    return settings


def stepped(
    name: str, chosen: Mapping[str, Any], published: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``chosen`` with "steps" as the method's own setting: their number, or their length of the whole time.

    Raises:
        ValueError: not a number of steps, or a length besides for a method that has no number.
    """
    from ..methods import spec

    known, settings = dict(spec(name).settings), dict(chosen)
    if "steps" not in chosen or not {"n_steps", "dt"} & known.keys():
        return settings
    steps = _positive_steps(settings.pop("steps"))
    if "n_steps" in known:
        return {**settings, "n_steps": steps}
    if "dt" in settings:
        raise ValueError("`--dt` must be left out with --steps, which says the same")
    t = settings.get("t", (published or {}).get("t", known["t"]))
    return {**settings, "dt": t / steps}


def make_method(name: str, classifier: nn.Module, settings: dict[str, Any]) -> Any:
    """The method; a network it cannot do without is the defended classifier, or one loaded from a file that was set.

    An energy is always set: the classifier is none.
    """
    from ..checkpoints import load_energy
    from ..classifiers import load_classifier
    from ..methods import make, spec

    takes = spec(name)
    if takes.network is not None and takes.network in settings:
        device = next((p.device for p in classifier.parameters()), None)
        load = load_energy if takes.network == "energy" else load_classifier
        settings = {**settings, takes.network: load(settings[takes.network]).to(device)}
    elif takes.network == "energy":
        raise ValueError(f"`--set method.energy=FILE` must be given (bundled: digits): {name} descends it")
    elif takes.network is not None and takes.required:
        settings = {**settings, takes.network: classifier}
    return make(name, **settings)


def _suiting(wanted: Request) -> dict[str, Any]:
    """The data set's settings. Methods' own are those published for CIFAR-10: right for any large denoiser of it."""
    from ..zoo import DENOISERS

    large = wanted.data != "digits" and wanted.denoiser is not None and str(wanted.denoiser) not in DENOISERS
    return {} if large else DEFAULTS.get(wanted.data, {})


def _attack(wanted: Request) -> tuple[Attack | None, str]:
    from ..attacks import ATTACKS
    from ..attacks.budget import NORMS
    from ..errors import one_of
    from ..evaluate import CONTROLS
    from ..norms import norm_called

    name = wanted.attack or "pgd"
    if name.endswith(RUN_FILE):
        return _found(name, wanted), "transfer"
    kinds: dict[str, Any] = {**ATTACKS, **CONTROLS}
    if one_of("attack", name, (*kinds, "none")) == "none":
        return None, "clean"
    known = [f.name for f in fields(kinds[name])]
    chosen = {**_suiting(wanted), **wanted.given}
    settings: dict[str, Any] = {key: chosen[key] for key in ATTACK_OPTIONS if key in chosen and key in known}
    if "norm" in settings:
        settings["norm"] = norm_called("--norm", settings["norm"], NORMS)
    if settings.get("norm", "Linf") != "Linf" and "eps" not in wanted.given:
        raise ValueError(f"`--eps` must be given with --norm {settings['norm']}: the default is one for Linf")
    for key, value in wanted.extra["attack"].items():
        if key not in known:
            raise ValueError(_no_setting(f"attack.{key}", name, known))
        settings[key] = tuple(value) if isinstance(value, list) else value
    if wanted.rows is not None:
        settings["batch_size"] = wanted.rows
    return kinds[name](**settings), name


def _no_setting(path: str, name: str, known: Sequence[str]) -> str:
    from ..words import did_you_mean

    hint = did_you_mean(path.partition(".")[2], known)
    has = f"`--set {path}`: {name} has no such setting; it has {', '.join(known)}"
    return f"{has}. {hint}" if hint else has


def _found(path: str, wanted: Request) -> Attack:
    """The adversarial images of a run file, which brings its budget."""
    from ..evaluate import Run

    named = [f"--{key.replace('_', '-')}" for key in ATTACK_OPTIONS if key in wanted.given]
    named += [f"--set attack.{key}" for key in wanted.extra["attack"]]
    if named:
        raise ValueError(f"`{named[0]}` has no effect: {path} holds finished images and their budget")
    with Run.open(path) as run:
        found = run.as_attack()
    return found if wanted.rows is None else replace(found, batch_size=wanted.rows)


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
    return network_of(wanted.data if wanted.preset is None else "", what, getattr(wanted, what))


def network_of(data: str, what: str, source: str | Path | None) -> str:
    """``source`` of the network, or the name of the one that is bundled for the data set.

    Args:
        what: "denoiser" or "classifier".

    Raises:
        ValueError: nothing was given, and nothing is bundled for these data.
    """
    if source is not None:
        return str(source)
    if data in SETTINGS:
        return str(getattr(SETTINGS[data], what))
    raise ValueError(f"`--{what}` must be given: the file of the {what}")


def _positive_steps(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"`--steps` must be at least 1, got {steps}")
    return steps


def _from_preset(wanted: Request) -> Experiment:
    preset = _preset(wanted)
    defense, dataset = _preset_defense(preset, wanted)
    attack, name = _preset_attack(preset, wanted)
    return Experiment(defense, dataset, attack, f"{preset.name}-{name}")


def _preset(wanted: Request) -> Preset:
    from ..presets import PRESETS

    preset = PRESETS[str(wanted.preset)]
    if wanted.method is not None:
        raise ValueError("`--method` must be left out with --preset, which names its own")
    if wanted.key is not None:
        raise ValueError("`--key` must be left out with --preset, whose data set has one set of images")
    if wanted.extra["classifier"]:
        raise ValueError("`--set classifier...` has no effect with --preset, which names its own classifier")
    return preset


def _preset_defense(preset: Preset, wanted: Request) -> tuple[nn.Module, Dataset]:
    from ..classifiers import load_classifier
    from ..methods import spec

    changes = method_settings(preset.recipe.name, wanted, dict(preset.recipe.settings))
    network = spec(preset.recipe.name).network
    file = changes.pop(network, None) if network is not None else None
    if file is not None and preset.recipe.takes is None:
        raise ValueError(f"`--set method.{network}` has no effect: {preset.name} is not guided")
    own = {} if wanted.size is None else {"size": wanted.size}
    refuse_options({**classifier_options(wanted), **own}, "--preset, which names its own")
    device = checked_device(wanted.device)
    dataset = preset.load_dataset(wanted.data_path, wanted.data_seed or None)
    if wanted.n is not None:
        dataset = dataset.select(range(min(wanted.n, len(dataset))))
    denoiser = preset.load_denoiser(_needed(wanted, "denoiser")).to(device)
    classifier = preset.load_classifier(_needed(wanted, "classifier")).to(device)
    guide = None if file is None else load_classifier(file).to(device)
    options = {"seed": wanted.seed, "precision": wanted.precision}
    return preset.defense(denoiser, classifier, guide=guide, changes=changes, **options), dataset


def _preset_attack(preset: Preset, wanted: Request) -> tuple[Attack | None, str]:
    """The preset's attack of the wanted name, else its first with exact gradients, with what was given changed."""
    if wanted.attack == "none":
        return None, "clean"
    specs = sorted(preset.attack_specs, key=lambda spec: spec.role != "adaptive")
    named = [spec for spec in specs if wanted.attack in (None, spec.name)]
    if not named:
        return _attack(wanted)
    return named[0].build(**attack_changes(wanted)), named[0].name


def attack_changes(wanted: Request) -> dict[str, Any]:
    """What was given in place of a preset's settings of its attacks."""
    changes: dict[str, Any] = {key: wanted.given[key] for key in ATTACK_OPTIONS if key in wanted.given}
    changes.update(wanted.extra["attack"])
    if wanted.rows is not None:
        changes["batch_size"] = wanted.rows
    return changes


def build_published(wanted: Request) -> tuple[Preset, list[Experiment]]:
    """A preset, and an experiment for each of the attacks of which its rule takes the smallest accuracy."""
    if wanted.preset is None:
        raise ValueError("`--protocol published` needs --preset: it is the rule of a published experiment")
    if wanted.attack is not None:
        raise ValueError("`--attack` must be left out with --protocol published, which names its own")
    preset = _preset(wanted)
    attacks = preset.deciding(**attack_changes(wanted))  # before anything is loaded: mistakes cost no time
    defense, dataset = _preset_defense(preset, wanted)
    return preset, [
        Experiment(defense, dataset, attack, f"{preset.name}-{label}") for label, attack in attacks.items()
    ]


def digest_of(experiments: Sequence[Experiment], protocol: Any, batch_size: int) -> str:
    """Eight digits that name these experiments together."""
    import hashlib

    from ..evaluate.identity import canonical, identity
    from ..evaluate.work import judged_by

    digest = hashlib.sha256()
    for one in experiments:
        attack = judged_by(one.attack, protocol, one.dataset.sample_ids)
        digest.update(canonical(identity(one.defense, one.dataset, attack, protocol, batch_size)).encode())
    return digest.hexdigest()[:8]
