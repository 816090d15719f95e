"""`load_classifier`: a bundled name, a file, or the caller's own module."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .. import zoo
from ..errors import CheckpointError, mistake
from .base import require_eval
from .native import read_classifier

__all__ = ["load_classifier"]


def load_classifier(source: str | Path | nn.Module) -> nn.Module:
    """A classifier from images in [0, 1], ``[B, C, H, W]``, to logits ``[B, classes]``.

    Args:
        source: a bundled name (``"digits"``), the path of a file written by `save_classifier`, or any
            ``nn.Module`` in evaluation mode, which is returned as it is.

    Returns:
        The network in evaluation mode. A loaded one has frozen weights; a module keeps its flags
        (``call_frozen`` treats its weights as constants anyway).

    Raises:
        TypeError: ``source`` is none of these.
        ValueError: the module, or one inside it, is in training mode.
        CheckpointError: no such name or file, or the file is damaged or foreign.
    """
    if isinstance(source, nn.Module):
        return require_eval(source, "source")
    if not isinstance(source, str | Path):
        raise TypeError(mistake("source", "a name, a path or a torch.nn.Module", type(source).__name__))
    if isinstance(source, str) and source in zoo.CLASSIFIERS:
        return read_classifier(zoo.weights_path("classifier", source))
    if not Path(source).exists():
        raise CheckpointError(
            f"`source` {str(source)!r} is neither a file nor a bundled classifier "
            f"(bundled: {', '.join(zoo.CLASSIFIERS)})"
        )
    return read_classifier(source)
