"""`load_classifier`: a bundled name, a file, another library's network, or the caller's own module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import zoo
from ..errors import CheckpointError, mistake
from ..hub import Place, find, hub_remedy
from ..signatures import suggests_names
from .base import require_eval
from .external import EXTERNAL, load_external, load_timm_folder
from .layouts import LAYOUTS, Wanted, read_foreign
from .native import is_native_classifier, read_classifier
from .normalised import Normalised, mean_and_std
from .robustbench import load_robustbench


def is_foreign(source: str | Path) -> bool:
    """Whether this is a file of another project, which cannot say itself what is done to its images."""
    path = Path(source)
    return str(source) not in zoo.CLASSIFIERS and path.is_file() and not is_native_classifier(path)


@suggests_names
@torch.inference_mode(False)
def load_classifier(
    source: str | Path | nn.Module,
    *,
    architecture: str | None = None,
    normalise: str | Sequence[Sequence[float]] | None = None,
    activation: str | None = None,
    weights: str | Path | tuple[str | Path, str] | None = None,
    dataset: str | None = None,
    threat_model: str | None = None,
    model_dir: str | Path | None = None,
    num_classes: int | None = None,
) -> nn.Module:
    """A classifier from images in [0, 1], ``[B, C, H, W]``, to logits ``[B, classes]``.

    Args:
        source: a bundled name (``"digits"``); a file of fastpure; a state dict of RobustBench's or DiffPure's
            wide ResNets and ResNets (safetensors or ``torch.save``, recognised by its names), or the name of such a
            network with ``weights``; ``"torchvision:NAME"`` or ``"timm:NAME"`` with ``weights``;
            ``"robustbench:NAME"`` with ``dataset`` and ``threat_model``, which RobustBench downloads if need be;
            ``"hf:OWNER/REPOSITORY"`` with a network of timm or of fastpure, fetched the first time; a name of
            `fastpure.hub.CARDS`, downloaded before; or any ``nn.Module`` in evaluation mode.
        architecture: for state dicts: a name of `WIDE_RESNETS`, `BIASED_WIDE_RESNETS` or `CIFAR_RESNETS`, which settles
            what names and shapes leave open, for example ``"wrn-70-16-dropout"`` for DiffPure's file.
        normalise: done inside, in front of the network: ``"none"``, ``"cifar10"``, ``"cifar100"``,
            ``"imagenet"`` or (mean, std). None takes what the architecture or the library says.
        activation: for wide ResNet state dicts, ``"relu"`` or ``"silu"``.
        weights: for a file that holds several sets: ``"ema"`` (averaged), ``"raw"`` or a name in it; None takes
            averaged ones where they are there. For torchvision and timm: a state dict file, (file, such a choice), or
            ``"pretrained"`` to let them download, for torchvision also ("pretrained", "IMAGENET1K_V1").
        dataset, threat_model, model_dir: for RobustBench; "cifar10", "Linf" and "models" if None.
        num_classes: for torchvision and timm, how many classes the network of ``weights`` tells apart, if not as many
            as its library says; for a state dict, how many it must have.

    Returns:
        The network in evaluation mode. A loaded one has frozen weights; a module keeps its flags
        (``call_frozen`` treats its weights as constants anyway). ``fastpure.classifiers.report_of`` it says which
        weights were taken from a file, and what is done to the images.

    Raises:
        TypeError: ``source`` is none of these.
        ValueError: an option is unknown, missing or of no use for this source, or the module is in training
            mode.
        CheckpointError: no such name or file; the file is damaged, hostile, foreign or does not fit; a
            library is not installed. Nothing is ever loaded partially.
        DownloadError: what is asked for by "hf:" cannot be fetched, or a download is not what it was.
    """
    options: dict[str, Any] = {
        "architecture": architecture,
        "normalise": normalise,
        "activation": activation,
        "weights": weights,
        "dataset": dataset,
        "threat_model": threat_model,
        "model_dir": model_dir,
        "num_classes": num_classes,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(source, nn.Module):
        _only(given, ("normalise",), "a module")
        require_eval(source, "source")
        chosen = mean_and_std(normalise) if normalise is not None else None
        return source if chosen is None else Normalised(source, *chosen)
    if not isinstance(source, str | Path):
        raise TypeError(mistake("source", "a name, a path or a torch.nn.Module", type(source).__name__))
    library, _, name = str(source).partition(":")
    if library in EXTERNAL and name:
        _only(given, ("normalise", "weights", "num_classes"), library)
        return load_external(library, name, weights, normalise, num_classes)
    if library == "robustbench" and name:
        _only(given, ("dataset", "threat_model", "model_dir"), library)
        return load_robustbench(name, **given)
    if isinstance(source, str) and source in zoo.CLASSIFIERS:
        _only(given, (), "a bundled classifier")
        return read_classifier(zoo.weights_path("classifier", source))
    if isinstance(source, str) and not Path(source).exists():
        if any(source in layout.configs for layout in LAYOUTS.values()) and weights is not None:
            file, which = weights if isinstance(weights, tuple) else (weights, None)
            of = {"weights": which} if which is not None else {}
            rest = {key: value for key, value in given.items() if key != "weights"}
            return _from_file(Path(file), {**rest, **of, "architecture": source})
        if (place := find(source, "classifier")) is not None:
            return _placed(source, place, given)
    return _from_file(Path(source), given)


def _placed(name: str, place: Place, given: dict[str, Any]) -> nn.Module:
    """The network of a card or a repository: RobustBench's, timm's, or a file."""
    if isinstance(place.path, str):
        _only(given, (), name)
        return load_classifier(place.path, **place.options)
    if place.path.is_file():
        return _from_file(place.path, {**place.options, **given})
    if (own := place.path / "classifier.safetensors").is_file():
        _only(given, (), "a fastpure file, which has its own")
        return read_classifier(own)
    _only(given, ("normalise",), name)
    return load_timm_folder(place.path, given.get("normalise"))


def _from_file(path: Path, given: dict[str, Any]) -> nn.Module:
    if not path.is_file():
        raise CheckpointError(
            f"`source` {str(path)!r} is neither a file nor a bundled classifier "
            f"(bundled: {', '.join(zoo.CLASSIFIERS)}), nor one that `fastpure download` lists, nor hf:OWNER/REPOSITORY"
            f", torchvision:NAME, timm:NAME or robustbench:NAME{hub_remedy(str(path))}"
        )
    if is_native_classifier(path):
        _only(given, (), "a fastpure file, which has its own")
        return read_classifier(path)
    allowed = ("architecture", "normalise", "activation", "weights", "num_classes")
    _only(given, allowed, "a state dict")
    told = {name: value for name, value in given.items() if name != "num_classes"}
    network = read_foreign(path, Wanted(**told))
    if given.get("num_classes") not in (None, found := network.config.classes):  # type: ignore[union-attr]
        raise ValueError(mistake("num_classes", f"{found}, as {path} has", given["num_classes"]))
    return network


def _only(given: dict[str, Any], allowed: tuple[str, ...], what: str) -> None:
    """Refuse options that would silently do nothing."""
    for name, value in given.items():
        if name not in allowed:
            raise ValueError(mistake(name, f"left out for {what}", repr(value)))
