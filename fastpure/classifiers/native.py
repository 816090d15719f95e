"""Classifiers as safetensors: weights plus, in the metadata, the configuration that rebuilds the network."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..checkpoints.fields import require_fields
from ..checkpoints.weights import parse_json, read_metadata, read_safetensors, refuse_inflated
from ..errors import CheckpointError, mistake
from ..files import replace_file
from .base import ClassifierReport, keep
from .biased_wide_resnet import BiasedWideResNet, BiasedWideResNetConfig
from .cifar_resnet import CifarResNet, CifarResNetConfig
from .config import ClassifierConfig
from .fitting import fit
from .resnet import ResNet, ResNetConfig
from .wide_resnet import WideResNet, WideResNetConfig

#: Name in the file -> (network, its configuration).
ARCHITECTURES: dict[str, tuple[type[nn.Module], type[ClassifierConfig]]] = {
    "resnet": (ResNet, ResNetConfig),
    "wide_resnet": (WideResNet, WideResNetConfig),
    "biased_wide_resnet": (BiasedWideResNet, BiasedWideResNetConfig),
    "cifar_resnet": (CifarResNet, CifarResNetConfig),
}


RESERVED = ("format", "kind", "version", "architecture", "config")
"""Metadata that the format writes itself."""


def save_classifier(
    classifier: nn.Module,
    path: str | Path,
    *,
    notes: dict[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a classifier of one of `ARCHITECTURES`, atomically: a crash leaves the old file or the new one.

    Args:
        notes: further metadata (training command, accuracy), strings only.
        dtype: stored precision of the matrices and filters; None keeps the network's. Biases, scales and
            running statistics, which cost nothing, keep theirs. Half precision is read back as float32.

    Raises:
        TypeError: another kind of network, which only its own code could rebuild.
        ValueError: a weight is not finite (in ``dtype``).
    """
    for name, (kind, _) in ARCHITECTURES.items():
        if isinstance(classifier, kind):
            architecture = name
            break
    else:
        expected = " or ".join(kind.__name__ for kind, _ in ARCHITECTURES.values())
        raise TypeError(mistake("classifier", f"a {expected}", type(classifier).__name__))
    metadata = {
        **(notes or {}),
        "format": "fastpure",
        "kind": "classifier",
        "version": "1",
        "architecture": architecture,
        "config": json.dumps(classifier.config.to_dict(), sort_keys=True),  # type: ignore[operator,union-attr]
    }
    weights = {name: _stored(name, value, dtype) for name, value in classifier.state_dict().items()}
    return replace_file(path, save(weights, metadata))


def is_native_classifier(path: Path) -> bool:
    """Whether the file was written by fastpure (a classifier or anything else)."""
    return read_metadata(path).get("format") == "fastpure"


def read_classifier(path: str | Path) -> nn.Module:
    """Read a file of `save_classifier`: evaluation mode, weights frozen, float32 unless stored in float64.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, or its weights do not fit its
            configuration; the message gives the file and the reason.
    """
    metadata, weights = read_safetensors(Path(path))
    if metadata.get("format") != "fastpure" or metadata.get("kind") != "classifier":
        found = f"{metadata.get('format', 'foreign')} {metadata.get('kind', 'weights')}"
        raise CheckpointError(f"{path}: expected a fastpure classifier, found {found}")
    if metadata.get("version") != "1" or metadata.get("architecture") not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: version {metadata.get('version')}, architecture {metadata.get('architecture')!r}: "
            f"this fastpure knows version 1 and {', '.join(ARCHITECTURES)}"
        )
    kind, config_kind = ARCHITECTURES[metadata["architecture"]]
    try:
        fields = require_fields(parse_json(metadata["config"], f"{path}, config"), f"{path}, config")
        config = config_kind.from_dict(fields)
        refuse_inflated(weights, Path(path).stat().st_size, str(path))
        network = fit(lambda: kind(config), weights, str(path))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: weights and configuration do not fit: {error}") from error
    mean, std = (getattr(config, name) for name in ("mean", "std"))
    plain = "images in [0, 1] as they are" if mean is None else f"mean {mean}, std {std}"
    notes = tuple(f"{name}: {metadata[name]}" for name in sorted(set(metadata) - set(RESERVED)))
    report = ClassifierReport(
        str(path),
        "native",
        kind.__name__,
        f"{plain} (stands in the file)",
        "as in the file",
        (),
        notes,
        config.to_dict(),
    )
    return keep(network, report)


def _stored(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype if value.ndim > 1 else None
    stored = value.detach().to(device="cpu", dtype=wanted).contiguous()
    if stored.is_floating_point() and not stored.isfinite().all():
        raise ValueError(mistake("classifier", f"finite in {stored.dtype}", f"NaN or Inf in {name}"))
    return stored
