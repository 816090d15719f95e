"""`load_denoiser`: a bundled name, or a file in one of `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import zoo
from ..errors import CheckpointError, mistake, one_of
from ..nets import Denoiser
from .native import is_native, read_native
from .score_sde import read_score_sde

#: Format -> reader of (path, config).
FORMATS: dict[str, Callable[[Path, Any], Denoiser]] = {
    "native": read_native,
    "score_sde": read_score_sde,
}


def load_denoiser(
    path: str | Path, format: str | None = None, config: str | Path | Mapping[str, Any] | None = None
) -> Denoiser:
    """Load a denoiser: frozen weights, evaluation mode, on the CPU.

    Args:
        path: a bundled name ("digits") or a file.
        format: a name of `FORMATS`; None recognises files written by fastpure.
        config: for formats whose files do not describe their network: the original project's configuration,
            as a dict or a JSON file.

    Raises:
        TypeError: ``path`` is neither a name nor a path.
        ValueError: an unknown format, or a configuration missing or superfluous for it.
        CheckpointError: no such file or name, damaged, or weights and configuration do not fit; nothing is
            loaded then.
    """
    if not isinstance(path, str | Path):
        raise TypeError(mistake("path", "a bundled name or a path", type(path).__name__))
    if format is not None:
        return FORMATS[one_of("format", format, FORMATS)](Path(path), config)
    if isinstance(path, str) and path in zoo.DENOISERS:
        return read_native(zoo.weights_path("denoiser", path), config)
    file = Path(path)
    if not file.exists():
        bundled = ", ".join(zoo.DENOISERS)
        raise CheckpointError(
            f"`path` {str(path)!r} is neither a file nor a bundled denoiser (bundled: {bundled})"
        )
    if not is_native(file):
        known = ", ".join(repr(name) for name in FORMATS)
        raise CheckpointError(
            f"{file}: not a fastpure file. Name its `format`, one of {known}, and its `config`"
        )
    return read_native(file, config)
