"""The files of a run: ``state.pt`` (all it takes to continue) and ``metrics.csv``. A kill spoils neither."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from ..errors import ResumeError
from ..files import FileLock, Watched, disk, replacing
from .config import differences

STATE = "state.pt"
METRICS = "metrics.csv"
HEADER = "step,loss,lr,seconds,held_out\n"


@final
@dataclass
class Metrics:
    """``metrics.csv``: a row per ``log_every`` steps.

    The checkpoint holds the file's length; a continued run cuts off what was written after it, so that
    the file equals the one of an unbroken run (but for the seconds).
    """

    path: Path
    length: int = field(default=len(HEADER), init=False)

    def start(self) -> None:
        """A new file with the header only."""
        self._write("w", HEADER)

    def resume(self, length: int) -> None:
        """Cut the file back to the length noted in the checkpoint."""
        if length == len(HEADER):
            self.start()  # killed between the first checkpoint and the first row
            return
        if not self.path.is_file() or self.path.stat().st_size < length:
            raise ResumeError(
                f"{self.path}: missing or shorter than its checkpoint says; choose another --out"
            )
        with disk(self.path):
            os.truncate(self.path, length)
        self.length = length

    def row(self, step: int, loss: float, lr: float, seconds: float, held_out: float | None) -> None:
        """Append one row and see it to disk. ``loss`` is the mean since the row before."""
        last = "" if held_out is None else f"{held_out:.8g}"
        self._write("a", f"{step},{loss:.8g},{lr:.8g},{seconds:.1f},{last}\n")

    def _write(self, mode: str, text: str) -> None:
        with disk(self.path), io.BufferedWriter(Watched(self.path, mode)) as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            self.length = file.tell()


@final
@dataclass(frozen=True)
class RunFolder:
    """The output folder of one run.

    Fields:
        path: the folder.
        identity: nested plain values that must be equal for a run to continue another (configuration of
            network, loss and optimisation, checksum of the data). ``train.steps`` alone may grow, once all are done.
        extended: after how many steps the run was finished before it was given more, ascending; filled by `claim`.
    """

    path: Path
    identity: Mapping[str, Any]
    extended: list[int] = field(default_factory=list)

    def claim(self, products: tuple[str, ...], held: ExitStack) -> dict[str, Any] | None:
        """The saved state to continue from, or None in a folder that is new.

        The folder is this process's until ``held`` is closed.

        Raises:
            ResumeError: the folder holds another run (the differing fields are named), a damaged
                ``state.pt``, or results without one. Nothing is changed then.
            RunLocked: another process trains into it.
            StoreUnavailable, DiskFull: it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ResumeError(f"{self.path} is a file; --out must be a folder")
        with disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        state = self.path / STATE
        held.callback(FileLock(state).release)
        if state.exists():
            return self._read(state)
        foreign = [name for name in (METRICS, *products) if (self.path / name).exists()]
        if foreign == [METRICS] and self._no_rows():
            foreign = []
        if foreign:
            raise ResumeError(
                f"{self.path} holds {', '.join(foreign)} but no {STATE}: not a run that can be continued, "
                f"and nothing is overwritten. Choose another --out"
            )
        return None

    def _no_rows(self) -> bool:
        """Whether the metrics are what a version that began with them left when it was killed at once."""
        with disk(self.path / METRICS):
            return HEADER.startswith((self.path / METRICS).read_bytes()[: len(HEADER) + 1].decode("latin-1"))

    def save(self, state: dict[str, Any]) -> None:
        """Write ``state.pt`` atomically: after a crash there is the old one or the new one."""
        identity = {**self.identity, _EXTENDED: self.extended} if self.extended else self.identity
        content = {**state, "identity": json.dumps(identity, sort_keys=True)}
        with replacing(self.path / STATE) as file:
            torch.save({**content, "sha256": _digest(content)}, file)

    def _longer(self, step: int, old: int, new: int) -> int:
        """``old`` if a run of so many steps may go on to ``new``; ResumeError if not."""
        if new < old:
            raise ResumeError(
                f"{self.path} holds a run of {old} steps, of which {step} are done; steps can only be added, not "
                f"taken away, got {new}. Choose another --out, or give --steps {old} or more"
            )
        if step < old:
            raise ResumeError(
                f"{self.path} holds a run of {old} steps, of which {step} are done, and its learning rate follows "
                f"from their number. Finish it with --steps {old} first; then --steps {new} adds the rest"
            )
        return old

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            sha256 = state.pop("sha256", None)  # not in those of version 0.1.0
            if sha256 not in (None, _digest(state)):
                raise ValueError("it is not what was written")
            saved, step = json.loads(state["identity"]), int(state["step"])
            before = [int(steps) for steps in saved.pop(_EXTENDED, [])]
        except Exception as error:  # damaged archives raise about every type there is
            raise ResumeError(
                f"{path} is damaged or not a training state: {error}. Choose another --out"
            ) from error
        wanted = json.loads(json.dumps(self.identity))
        changed = differences(saved, wanted)
        old, new = (identity.get("train", {}).get("steps") for identity in (saved, wanted))
        if old != new and len(changed) == 1:
            before.append(self._longer(step, old, new))
            changed = []
        self.extended[:] = before
        if changed:
            listed = "\n  ".join(changed)
            raise ResumeError(
                f"{self.path} holds a run of another configuration; nothing was overwritten. "
                f"Choose another --out, or go back to the saved values:\n  {listed}"
            )
        return state


_EXTENDED = "extended"
"""Name in a saved identity that no wanted one has."""


def _digest(content: Any) -> str:
    """SHA-256 of nested dicts and lists of tensors and plain values: PyTorch itself notices no flipped bit."""
    digest = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, dict):
            for key in value:
                digest.update(f"{key!r}:".encode())
                feed(value[key])
        elif isinstance(value, list | tuple):
            for each in value:
                feed(each)
                digest.update(b",")
        elif isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
        digest.update(b";")

    feed(content)
    return digest.hexdigest()
