"""Dividing a run among processes without a common file, and putting the parts together.

A shard is every n-th block of the run, so that each block meets the networks in the same company as in an undivided
run: the merged file has the same content digest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ..errors import DiskFull, RunDamaged, RunMismatch, StoreUnavailable, mistake, whole
from ..files import FULL, disk, partial_name, real, sweep, sync_folder
from .identity import canonical, differences
from .run import Run
from .store import WHOLE, RunStore, claim


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n" with 1 <= i <= n.

    Raises:
        ValueError: the text is of another form.
    """
    parts = text.split("/")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(mistake("shard", "of the form i/n, such as 1/4", repr(text)))
    index, of = (int(part) for part in parts)
    return _checked(index, of)


def share(shard: tuple[int, int] | None, batch_size: int) -> dict[str, int]:
    """What a file says about its part of the run."""
    if shard is None or shard[1] == 1:
        return dict(WHOLE)
    index, of = _checked(*shard)
    return {"index": index, "of": of, "unit": batch_size}


def blocks(n_images: int, batch_size: int, part: dict[str, int], done: set[int]) -> list[list[int]]:
    """The blocks still to do: positions cut at multiples of ``batch_size``, this part's share of them."""
    cut = [list(range(i, min(i + batch_size, n_images))) for i in range(0, n_images, batch_size)]
    own = cut[part["index"] - 1 :: part["of"]]
    rest = ([position for position in block if position not in done] for block in own)
    return [block for block in rest if block]


def merge(out: str | Path, shards: Sequence[str | Path]) -> Path:
    """Put finished shards together into one run file, which gets its name when it is whole and verified.

    Given again after it was killed it ends the same, also if the file was there already.

    Raises:
        RunMismatch: the shards are of different runs, overlap, or one is missing or unfinished.
        RunDamaged: one of them is damaged.
        RunLocked: another process writes ``out``.
        StoreUnavailable, DiskFull: ``out`` holds something else, or cannot be written. Nothing is changed then.
        FileNotFoundError: a shard does not exist.
    """
    target = Path(out)
    if not shards:
        raise ValueError(mistake("shards", "at least one run file", "none"))
    with ExitStack() as stack:
        runs = [stack.enter_context(Run.open(path)) for path in shards]
        _check_parts(runs)
        stack.callback(claim(target).release)
        if target.exists():
            _check_merged(target, runs)
            return target
        partial = partial_name(real(target))
        try:
            _copy(runs, partial, target)
            with disk(target):
                os.replace(partial, real(target))
        finally:
            for left in (partial, partial.with_name(partial.name + "-journal")):
                with suppress(OSError):
                    left.unlink()
        sync_folder(real(target).parent)
    return target


def _check_parts(runs: list[Run]) -> None:
    owner: dict[int, Run] = {}
    for run in runs:
        changed = differences(runs[0].identity, run.identity)
        if changed:
            listed = "\n  ".join(changed[:12])
            raise RunMismatch(f"{runs[0].path} and {run.path} are parts of different runs:\n  {listed}")
        for position in run.positions.tolist():
            if position in owner:
                raise RunMismatch(
                    f"{owner[position].path} and {run.path} overlap: both hold the image at position {position}"
                )
            owner[position] = run
    missing = runs[0].n_total - len(owner)
    if missing:
        first = next(i for i in range(runs[0].n_total) if i not in owner)
        shares = ", ".join(f"{run.share['index']}/{run.share['of']}" for run in runs)
        raise RunMismatch(
            f"{missing} of {runs[0].n_total} images are in none of the shards ({shares}), the first at position "
            f"{first}: a shard is missing or unfinished"
        )


def _copy(runs: list[Run], partial: Path, target: Path) -> None:
    """Write all of ``runs`` to ``partial``, see it to the disk, and read it back from there."""
    merged_from = {"merged_from": [str(run.path) for run in runs]}
    with disk(target):
        sweep(partial.parent)
    try:
        store = RunStore(partial, runs[0].identity, settings=merged_from, named=False)
        try:
            store.copy_from(runs)
        finally:
            store.close()
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        with Run.open(partial) as merged:
            same = merged.complete and merged.content_digest() == _digest(runs)
    except (OSError, RunDamaged) as error:
        if isinstance(error, DiskFull) or getattr(error, "errno", None) in FULL:
            raise DiskFull(
                f"no space left to write {target}; the shards are untouched. Free some space and merge again"
            ) from error
        raise StoreUnavailable(f"{target} cannot be written: {error}; the shards are untouched") from error
    if not same:
        raise StoreUnavailable(f"{target} cannot be written: what was read back is not what the shards hold")


def _check_merged(target: Path, runs: list[Run]) -> None:
    """StoreUnavailable if what is there is not what merging would give."""
    try:
        with Run.open(target) as there:
            same = there.content_digest() == _digest(runs)
    except (RunDamaged, StoreUnavailable) as error:
        raise StoreUnavailable(f"{target} exists; merge into a new file ({error})") from error
    if not same:
        raise StoreUnavailable(f"{target} exists and holds something else; merge into a new file")


def _digest(runs: list[Run]) -> str:
    """`Run.content_digest` of all of ``runs`` together."""
    checksums = {position: sha for run in runs for position, sha in run.result_checksums().items()}
    digest = hashlib.sha256(canonical(runs[0].identity).encode())
    for position in sorted(checksums):
        digest.update(checksums[position])
    return digest.hexdigest()


def _checked(index: int, of: int) -> tuple[int, int]:
    whole("shard", of, 1)
    whole("shard", index, 1, of)
    return index, of


def describe(part: dict[str, Any]) -> str:
    """ "shard 2/4", or "" for a whole run."""
    return "" if part["of"] == 1 else f"shard {part['index']}/{part['of']}"
