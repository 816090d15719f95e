"""Networks that torchvision or timm build, with weights from a local file and normalisation inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints.fields import require_fields
from ..checkpoints.weights import read_json
from ..errors import CheckpointError, FastpureError, listed, mistake, whole
from .base import ClassifierReport, keep
from .normalised import MeanStd, Normalised, mean_and_std
from .state_dicts import read_weights, refuse_another

#: Value of ``weights`` that lets the library download its own.
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Asked:
    """What a library is asked for.

    Attributes:
        name: of the network.
        pretrained: whether the library downloads its weights.
        which: the name of these weights, where it has several; None takes its default.
        num_classes: how many classes the network has, or None for the library's own number.
        settings: further arguments of the network that a published configuration names.
    """

    name: str
    pretrained: bool = False
    which: str | None = None
    num_classes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Of the function that builds the network, besides its name."""
        classes = {} if self.num_classes is None else {"num_classes": self.num_classes}
        return {**self.settings, **classes}


@dataclass(frozen=True)
class Built:
    """A library's network, and what the library says of it.

    Attributes:
        module: the network, with the library's weights if these were asked for.
        normalisation: what it wants done to images in [0, 1].
        weights: which weights were downloaded, in words.
        unsaid: why the normalisation depends on the weights, if a file of them could be of several kinds; "" if not.
    """

    module: nn.Module
    normalisation: MeanStd | None
    weights: str = ""
    unsaid: str = ""


def load_external(
    library: str,
    name: str,
    weights: str | Path | tuple[str | Path, str] | None,
    normalise: str | Sequence[Sequence[float]] | None,
    num_classes: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network ``name`` of ``library`` (a key of `EXTERNAL`), frozen and in evaluation mode.

    Args:
        weights: a state dict file (safetensors or ``torch.save``), (file, "ema" | "raw" | a name in it),
            ``"pretrained"`` to let the library download its own, or for torchvision ("pretrained", "IMAGENET1K_V1").
        normalise: a name of `NORMALISATIONS` or (mean, std); None takes the library's own for this network.
        num_classes: how many classes the weights are for, if not as many as the library's own.
        settings: further arguments of the network.

    Raises:
        ValueError: an unknown network, no weights, ``num_classes`` for the library's own weights, or no ``normalise``
            for a file whose normalisation the name of the network does not settle.
        CheckpointError: the library is missing or broken, the file does not fit, or the download failed.
    """
    if weights is None:
        remedy = "A network with random weights classifies nothing"
        expected = f"the file of the weights, or {PRETRAINED!r} to download them"
        raise ValueError(mistake("weights", expected, "None", remedy))
    file, which = weights if isinstance(weights, tuple) else (weights, None)
    if num_classes is not None:
        whole("num_classes", num_classes, 2)
        if file == PRETRAINED:
            remedy = "They have the classes that they were trained on"
            raise ValueError(
                mistake("num_classes", f"left out for {PRETRAINED!r} weights", num_classes, remedy)
            )
    pretrained = file == PRETRAINED
    built = EXTERNAL[library](
        Asked(name, pretrained, which if pretrained else None, num_classes, settings or {})
    )
    module, own, known = built.module, built.normalisation, f"that of {library}"
    said, unsaid = f"as downloaded ({built.weights})", built.unsaid
    dropped: tuple[str, ...] = ()
    if not pretrained:
        content = read_weights(Path(file), which)
        _fill(module, content.tensors, f"{file} for {library}:{name}")
        said, dropped = content.said, content.dropped
        if content.normalisation is not None:
            own, known, unsaid = content.normalisation, "stands in the file", ""
            refuse_another(normalise, content.normalisation, str(file))
    if normalise is None and unsaid:
        raise ValueError(mistake("normalise", f"given for a file of {library}:{name}", "None", unsaid))
    chosen = own if normalise is None else mean_and_std(normalise)
    known = known if normalise is None else "as given"
    module.eval().requires_grad_(False)
    plain = "images in [0, 1] as they are" if chosen is None else f"mean {chosen[0]}, std {chosen[1]}"
    kind = type(module).__name__
    report = ClassifierReport(
        str(file), f"{library}:{name}", kind, f"{plain} ({known})", said, dropped, (), {}
    )
    return keep(module if chosen is None else Normalised(module, *chosen), report)


def _fill(module: nn.Module, tensors: dict[str, Any], source: str) -> None:
    expected = module.state_dict()
    wrong = {
        "missing": [name for name in expected if name not in tensors and "num_batches" not in name],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} (expected {list(expected[name].shape)}, found {list(tensors[name].shape)})"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
        "with NaN or Inf": [
            name
            for name, value in tensors.items()
            if value.is_floating_point() and not value.isfinite().all()
        ],
    }
    problems = "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in wrong.items() if names)
    if problems:
        heads = [
            name
            for name in expected
            if name in tensors and expected[name].shape[:1] != tensors[name].shape[:1] and tensors[name].ndim
        ]
        remedy = ""
        if wrong["of another shape"] and len(heads) <= 2 and not wrong["missing"]:
            remedy = f". For {len(tensors[heads[0]])} classes give num_classes" if heads else ""
        raise CheckpointError(f"{source}: weights do not fit: {problems}{remedy}")
    module.load_state_dict(tensors, strict=False)


def _import(library: str) -> Any:
    try:
        return __import__(library, fromlist=["models"])
    except ImportError as error:
        raise CheckpointError(f"{library} is not installed ({error}): pip install {library}") from error
    except RuntimeError as error:
        # A torchvision built for another torch fails like this when it registers its operators.
        raise CheckpointError(f"{library} is installed but cannot be imported: {error}") from error


def _torchvision(asked: Asked) -> Built:
    models, name = _import("torchvision.models"), asked.name
    if name not in models.list_models():
        raise ValueError(_unknown("torchvision", name, models.list_models()))
    known = models.get_model_weights(name)
    if asked.which is not None and asked.which not in known.__members__:
        expected = f"{PRETRAINED!r} with one of {', '.join(known.__members__)}"
        raise ValueError(mistake("weights", expected, repr(asked.which)))
    chosen = (known.DEFAULT if asked.which is None else known[asked.which]) if asked.pretrained else None
    module = _downloaded(
        lambda: models.get_model(name, weights=chosen, **asked.arguments()), f"torchvision:{name}"
    )
    # A file may hold any of the published weights, apart from those without a classifier.
    of = [chosen] if chosen is not None else [one for one in known if one.meta.get("categories")]
    found = {pair for one in of if (pair := _shown_by(one.transforms())) is not None}
    unsaid = ""
    if len(found) > 1:
        unsaid = "Its published weights differ in it: " + " and ".join(map(str, sorted(found)))
    elif getattr(module, "transform_input", True) is False:
        # torchvision's own code makes [-1, 1] of its input where it has downloaded the weights, and only there.
        unsaid = (
            "torchvision's own weights and those that were trained further from them see [-1, 1], ((0.5, 0.5, 0.5), "
            "(0.5, 0.5, 0.5)); those of a training from the start what it showed them, mostly 'imagenet'"
        )
    own = next(iter(found)) if len(found) == 1 else mean_and_std("imagenet")
    return Built(module, own, "" if chosen is None else chosen.name, unsaid)


def _shown_by(transforms: Any) -> MeanStd | None:
    """(mean, std) of what torchvision does to the images of some weights."""
    mean, std = getattr(transforms, "mean", None), getattr(transforms, "std", None)
    return None if mean is None or std is None else mean_and_std((mean, std))


def _timm(asked: Asked) -> Built:
    timm, name = _import("timm"), asked.name
    if not timm.is_model(name):
        raise ValueError(_unknown("timm", name, timm.list_models()))
    if asked.which is not None:
        remedy = "Name them with the network: timm:NAME.TAG"
        raise ValueError(mistake("weights", f"{PRETRAINED!r} alone for timm", repr(asked.which), remedy))
    module = _downloaded(
        lambda: timm.create_model(name, pretrained=asked.pretrained, **asked.arguments()), f"timm:{name}"
    )
    settings = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", {})
    own = mean_and_std((settings["mean"], settings["std"])) if "mean" in settings else None
    unsaid = ""
    if not asked.pretrained and "." not in name and (differing := _differing(timm, name)):
        unsaid = (
            f"Its published weights differ in it ({differing}): name them with the network, timm:{name}.TAG, "
            "or give what the training showed"
        )
    return Built(module, own, f"timm's {settings.get('tag') or 'own'}", unsaid)


def _differing(timm: Any, name: str) -> str:
    """Which of the published weights of a network see what, if they see different things; "" if not."""
    known = getattr(timm.models, "get_arch_pretrained_cfgs", None) if hasattr(timm, "models") else None
    tags: dict[MeanStd, list[str]] = {}
    for full, settings in (known(name) if known is not None else {}).items():
        if settings.has_weights:
            pair = mean_and_std((settings.mean, settings.std))
            tags.setdefault(pair, []).append(full.partition(".")[2])  # type: ignore[arg-type]
    if len(tags) < 2:
        return ""
    return "; ".join(f"{mean}, {std} of {listed(names)}" for (mean, std), names in tags.items())


def _downloaded(build: Callable[[], nn.Module], what: str) -> nn.Module:
    try:
        return build()
    except FastpureError:
        raise
    except Exception as error:  # whatever the library's downloads raise
        raise CheckpointError(f"{what} could not be built: {error}") from error


def _unknown(library: str, name: str, known: Sequence[str]) -> str:
    from ..words import did_you_mean

    expected = f"a network of {library} ({len(known)} known)"
    return mistake("source", expected, repr(name), did_you_mean(name, known))


def load_timm_folder(folder: Path, normalise: str | Sequence[Sequence[float]] | None = None) -> nn.Module:
    """The network of a folder as timm publishes them: config.json, and model.safetensors or pytorch_model.bin.

    Raises:
        CheckpointError: it is no such folder, or timm is missing.
    """
    config = require_fields(read_json(folder / "config.json"), str(folder / "config.json"))
    name, settings = config.get("architecture"), config.get("pretrained_cfg")
    if not isinstance(name, str) or not isinstance(settings, Mapping):
        found = config.get("model_type") or config.get("_class_name") or listed(config)
        raise CheckpointError(
            f"{folder}: expected a network of timm (architecture and pretrained_cfg in config.json), found {found}. "
            "Build it with its own library, and give the module to fp.Normalised(network, mean, std)"
        )
    files = [folder / "model.safetensors", folder / "pytorch_model.bin"]
    weights = next((file for file in files if file.is_file()), files[0])
    if normalise is None and "mean" in settings and "std" in settings:
        normalise = (settings["mean"], settings["std"])
    further = require_fields(config.get("model_args") or {}, f"{folder / 'config.json'}, model_args")
    # These are for the library, and some would have it open other files.
    of_library = inspect.signature(_import("timm").create_model).parameters
    if refused := sorted(set(further) & set(of_library)):
        raise CheckpointError(
            f"{folder / 'config.json'}: model_args must be those of the network, found {listed(refused)}"
        )
    further = {name: value for name, value in further.items() if name != "num_classes"}
    return load_external("timm", name, weights, normalise, config.get("num_classes"), further)


#: Library -> the function that builds its networks.
EXTERNAL: dict[str, Callable[[Asked], Built]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}
