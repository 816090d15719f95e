"""Networks that torchvision or timm build, with weights from a local file and normalisation inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints.fields import require_fields
from ..checkpoints.weights import read_json
from ..errors import CheckpointError, FastpureError, listed, mistake, whole
from .base import ClassifierReport, keep
from .normalised import Normalised, mean_and_std
from .state_dicts import read_weights

#: Value of ``weights`` that lets the library download its own.
PRETRAINED = "pretrained"


def load_external(
    library: str,
    name: str,
    weights: str | Path | tuple[str | Path, str] | None,
    normalise: str | Sequence[Sequence[float]] | None,
    num_classes: int | None = None,
) -> nn.Module:
    """The network ``name`` of ``library`` (a key of `EXTERNAL`), frozen and in evaluation mode.

    Args:
        weights: a state dict file (safetensors or ``torch.save``), (file, "ema" | "raw" | a name in it), or
            ``"pretrained"`` to let the library download its own.
        normalise: a name of `NORMALISATIONS` or (mean, std); None takes the library's own for this network.
        num_classes: how many classes the weights are for, if not as many as the library's own.

    Raises:
        ValueError: an unknown network, no weights, or ``num_classes`` for the library's own weights.
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
    module, own = EXTERNAL[library](name, file == PRETRAINED, num_classes)
    known, said = f"that of {library}", "as downloaded"
    dropped: tuple[str, ...] = ()
    if file != PRETRAINED:
        content = read_weights(Path(file), which)
        _fill(module, content.tensors, f"{file} for {library}:{name}")
        said, dropped = content.said, content.dropped
        if content.normalisation is not None:
            own, known = content.normalisation, "stands in the file"
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
        heads = [name for name in expected if name in tensors and len(expected[name]) != len(tensors[name])]
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


def _torchvision(name: str, pretrained: bool, num_classes: int | None) -> tuple[nn.Module, Any]:
    models = _import("torchvision.models")
    if name not in models.list_models():
        raise ValueError(_unknown("torchvision", name, models.list_models()))
    chosen = models.get_model_weights(name).DEFAULT if pretrained else None
    more = {} if num_classes is None else {"num_classes": num_classes}
    module = _downloaded(lambda: models.get_model(name, weights=chosen, **more), f"torchvision:{name}")
    return module, mean_and_std("imagenet")


def _timm(name: str, pretrained: bool, num_classes: int | None) -> tuple[nn.Module, Any]:
    timm = _import("timm")
    if not timm.is_model(name):
        raise ValueError(_unknown("timm", name, timm.list_models()))
    more = {} if num_classes is None else {"num_classes": num_classes}
    module = _downloaded(lambda: timm.create_model(name, pretrained=pretrained, **more), f"timm:{name}")
    settings = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", {})
    return module, mean_and_std((settings["mean"], settings["std"])) if "mean" in settings else None


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
    return load_external("timm", name, weights, normalise, config.get("num_classes"))


#: Library -> function of (network, pretrained, number of classes or None) that gives the network and its normalisation.
EXTERNAL: dict[str, Callable[[str, bool, int | None], tuple[nn.Module, Any]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}
