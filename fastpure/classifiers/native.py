"""Classifiers as safetensors: weights plus, in the metadata, the configuration that rebuilds the network."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from safetensors.torch import save

from ..checkpoints.weights import read_safetensors
from ..errors import CheckpointError, mistake
from .resnet import ResNet, ResNetConfig

__all__ = ["ARCHITECTURES", "read_classifier", "save_classifier"]

ARCHITECTURES: dict[str, tuple[type[ResNet], type[ResNetConfig]]] = {"resnet": (ResNet, ResNetConfig)}


def save_classifier(classifier: ResNet, path: str | Path, *, notes: dict[str, str] | None = None) -> Path:
    """Write a classifier of one of `ARCHITECTURES`, atomically: a crash leaves the old file or the new one.

    Args:
        notes: further metadata (training command, accuracy), strings only.

    Raises:
        TypeError: another kind of network, which only its own code could rebuild.
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
        "config": json.dumps(classifier.config.to_dict(), sort_keys=True),
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save(weights, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise
    return target


def read_classifier(path: str | Path) -> ResNet:
    """Read a file of `save_classifier`: the network in evaluation mode, weights frozen.

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
    if damaged := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{path}: NaN or Inf in {', '.join(damaged[:3])}")
    kind, config_kind = ARCHITECTURES[metadata["architecture"]]
    try:
        classifier = kind(config_kind.from_dict(json.loads(metadata["config"])))
        classifier.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: weights and configuration do not fit: {error}") from error
    return classifier.eval().requires_grad_(False)
