"""Arguments that only some kinds of data take, in one wording each."""

from __future__ import annotations

from pathlib import Path


def needed(path: str | Path | None, name: str, what: str = "") -> str | Path:
    """``path``, which data set ``name`` cannot do without; ``what`` is expected there, in words.

    Raises:
        ValueError: it is None.
    """
    if path is None:
        more = f": {what}" if what else ""
        raise ValueError(
            f"`path` must be given for data set {name!r} (on the command line: --data-path){more}"
        )
    return path


def no_key(key: str | None, of: str, why: str = "it is for 'arrays'") -> None:
    """Raise ValueError if a key was given of what holds one set of images."""
    if key is not None:
        raise ValueError(f"`key` must not be given for {of} ({why}), got {key!r}")


def no_size(size: int | None, name: str) -> None:
    """Raise ValueError if a size was given of images that have one."""
    if size is not None:
        raise ValueError(
            f"`size` must not be given for data set {name!r} (it is for 'folder' and 'imagenet'), got {size}"
        )
