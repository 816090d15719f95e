"""From a name to the file: in the cache, to be fetched because somebody asks, or missing, with the command to run."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from ..errors import CheckpointError, DownloadError, RunLocked, mistake
from ..files import FileLock
from ..readers import READERS
from .cards import CARDS, Card
from .fetching import ANY, fetch_file, fetch_repository
from .records import RECORD, check, read_record, write_record

PAUSE = 0.5
"""Seconds between two looks at the lock of another download."""

SILENT = 5.0
"""Seconds to wait for another download before it is said."""

HUB = "hf:"
ROBUSTBENCH = "robustbench:"
_HUB_NAME = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[\w./-]+))?"
)
_WEIGHTS = frozenset({".pt", ".pth", ".pkl", ".ckpt", ".bin", ".safetensors", ".npz"})


@final
@dataclass(frozen=True)
class Place:
    """Where a network lies.

    Fields:
        path: the file or folder; for RobustBench's networks their name with its prefix.
        options: of `fastpure.load_denoiser` or `fastpure.load_classifier`, besides.
    """

    path: str | Path
    options: Mapping[str, Any] = field(default_factory=dict)


def cache_folder() -> Path:
    """Where downloads go: FASTPURE_CACHE, or ``fastpure`` in XDG_CACHE_HOME, or in ``~/.cache``."""
    if own := os.environ.get("FASTPURE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpure"


def hub_remedy(source: str) -> str:
    """What a message ends with where a file that is not there is written as diffusers and timm write repositories."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or Path(source).suffix.lower() in _WEIGHTS:
        return ""
    return f". Did you mean {HUB}{source}?"


def find(name: str, kind: str) -> Place | None:
    """Where the network of this name lies, fetched if the name says "hf:"; None if it is no name of ours.

    Args:
        name: "hf:OWNER/REPOSITORY", with "@REVISION" and ":FILE" if wanted, or a name of `CARDS`.
        kind: "denoiser" or "classifier".

    Raises:
        CheckpointError: a name of `CARDS` that was not downloaded, with the command that does it, or of another kind.
        DownloadError: it cannot be fetched, or is not what it was when it was.
        MissingExtra: what fetches it is not installed.
    """
    if name.startswith(HUB):
        return Place(_of_hub(name, kind, None, True))
    if name not in CARDS:
        return None
    card = CARDS[name]
    path: str | Path | None
    if card.kind != kind:
        raise CheckpointError(f"{name!r} is a {card.kind}: fp.load_{card.kind}({name!r})")
    if card.source.startswith(HUB):
        path = _kept_of_hub(card.source, cache_folder())
    elif card.source.startswith(ROBUSTBENCH):
        path = _of_robustbench(card, cache_folder())
    else:
        path = _kept(name, card, cache_folder() / name)
    if path is None:
        raise CheckpointError(f"{name!r} is not here. {_how(name, card)}")
    return Place(path, _options(card, cache_folder()))


def is_here(name: str) -> bool:
    """Whether a network of `CARDS` lies in the cache; nothing is compared."""
    card, root = CARDS[name], cache_folder()
    if card.source.startswith(HUB):
        return (_hub_folder(card.source, root) / RECORD).is_file()
    if card.source.startswith(ROBUSTBENCH):
        return _robustbench_file(card, root).is_file()
    return (root / name / card.file).is_file()


def download(name: str, dest: str | Path | None = None, *, progress: bool = True) -> Path:
    """Fetch a network, if it is not there already, and return its file or folder.

    Args:
        name: of `CARDS`, or ``"hf:OWNER/REPOSITORY[@REVISION][:FILE]"``.
        dest: the folder in which it gets one of its own; `cache_folder` if None. From elsewhere than the cache it is
            loaded by its path.

    Raises:
        ValueError: an unknown name; close ones are given.
        DownloadError: it cannot be fetched, or must be by hand: the message says from where and to where.
        MissingExtra: what fetches it is not installed.
    """
    root = cache_folder() if dest is None else Path(dest)
    if name.startswith(HUB):
        return _of_hub(name, ANY, root, progress)
    if name not in CARDS:
        from ..words import did_you_mean

        expected = f"one of {', '.join(CARDS)}, or hf:OWNER/REPOSITORY"
        raise ValueError(mistake("name", expected, repr(name), did_you_mean(name, CARDS)))
    card = CARDS[name]
    if card.source.startswith(HUB):
        return _of_hub(card.source, card.kind, root, progress)
    if card.source.startswith(ROBUSTBENCH):
        return _fetch_of_robustbench(card, root)
    folder = root / name
    there = _kept(name, card, folder)
    if there is not None:
        return there
    if card.by_hand:
        raise DownloadError(_how(name, card, folder))
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / card.file):
        there = _kept(name, card, folder)  # which another process may have fetched meanwhile
        if there is None:
            fetch_file(card.source, folder / card.file, progress)
            write_record(folder, card.source, [card.file])
    return folder / card.file


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``; while another process downloads there, wait for it, and say so after a while."""
    lock, waited = None, 0.0
    while lock is None:
        try:
            lock = FileLock(path)
        except RunLocked as held:
            time.sleep(PAUSE)
            waited += PAUSE
            if waited - PAUSE < SILENT <= waited:
                print(f"fastpure: waiting for another download: {held}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        lock.release()


def _kept(name: str, card: Card, folder: Path) -> Path | None:
    """The file of a card in ``folder``, compared with its record; None if it is not there."""
    record = read_record(folder)
    if record is not None:
        check(folder, record)
        return folder / card.file
    if card.by_hand and (folder / card.file).is_file():
        write_record(folder, card.source, [card.file])  # the first time that it is seen
        return folder / card.file
    return None


def _of_hub(name: str, kind: str, root: Path | None, progress: bool) -> Path:
    repository, revision, file = _parts(name)
    root = cache_folder() if root is None else root
    there = _kept_of_hub(name, root)
    if there is not None:
        return there
    folder = _hub_folder(name, root)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "download"):
        there = _kept_of_hub(name, root)  # which another process may have fetched meanwhile
        if there is None:
            commit, files = fetch_repository(repository, revision, kind, file, folder, progress)
            write_record(folder, name, files, commit=commit)
    return folder / file if file else folder


def _kept_of_hub(name: str, root: Path) -> Path | None:
    folder, file = _hub_folder(name, root), _parts(name)[2]
    record = read_record(folder)
    if record is None:
        return None
    check(folder, record)
    return folder / file if file else folder


def _hub_folder(name: str, root: Path) -> Path:
    repository, revision, file = _parts(name)
    parts = [repository, *([f"@{revision}"] if revision != "main" else []), *([f":{file}"] if file else [])]
    return root / "hf" / re.sub(r"[/:]", "--", "".join(parts))


def _parts(name: str) -> tuple[str, str, str]:
    """(repository, revision, file) of "hf:...". Raises ValueError."""
    found = _HUB_NAME.fullmatch(name)
    if found is None or ".." in name:
        raise ValueError(
            mistake("name", "hf:OWNER/REPOSITORY, with @REVISION and :FILE if wanted", repr(name))
        )
    return found["repository"], found["revision"] or "main", found["file"] or ""


def _robustbench_file(card: Card, root: Path) -> Path:
    name = card.source.removeprefix(ROBUSTBENCH)
    return root / "robustbench" / card.options["dataset"] / card.options["threat_model"] / f"{name}.pt"


def _of_robustbench(card: Card, root: Path) -> str | None:
    file = _robustbench_file(card, root)
    folder = file.with_suffix("")
    record = read_record(folder)
    if record is None or not file.is_file():
        return None
    check(folder, record)
    return card.source


def _fetch_of_robustbench(card: Card, root: Path) -> Path:
    """RobustBench's own package fetches; what came is recorded like everything else."""
    file = _robustbench_file(card, root)
    if _of_robustbench(card, root) is not None:
        return file
    folder, name = file.with_suffix(""), card.source.removeprefix(ROBUSTBENCH)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "download"):
        if _of_robustbench(card, root) is None:
            READERS["robustbench"](name, **card.options, model_dir=root / "robustbench")
            if not file.is_file():
                raise DownloadError(
                    f"robustbench wrote no {file} for {name}: it loads that network elsewhere"
                )
            write_record(folder, card.source, [f"../{file.name}"])
    return file


def _options(card: Card, root: Path) -> dict[str, Any]:
    own = {"model_dir": root / "robustbench"} if card.source.startswith(ROBUSTBENCH) else {}
    return {**card.options, **own}


def _how(name: str, card: Card, folder: Path | None = None) -> str:
    """How to get what is not there, with its size and licence."""
    about = f"{card.architecture} on {card.data}; licence {card.licence}, size {card.size_in_words}"
    if card.by_hand:
        folder = folder or cache_folder() / name
        return f"Fetch it by hand from {card.source} and save it as {folder / card.file} ({about})"
    return f"Run: fastpure download {name} ({about})"
