"""Numbers of a long run, sent where somebody watches: TensorBoard or Weights & Biases, by Accelerate's trackers."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from .errors import MissingExtra, one_of

TRACKERS = ("tensorboard", "wandb")
"""What there is; each is also the extra that brings it, and the package."""


def check_tracker(name: str) -> str:
    """``name`` if it is a tracker that is installed; nothing is imported or written.

    Raises:
        ValueError: another name.
        MissingExtra: it, or Accelerate, is not installed.
    """
    one_of("tracker", name, TRACKERS)
    for package in (name, "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, name, f"--tracker {name}")
    return name


@final
class Tracker:
    """Scalars of one run.

    Args:
        name: of `TRACKERS`.
        folder: of the run. TensorBoard's events go to ``folder/tensorboard``, the files of Weights & Biases to
            ``folder/wandb``; its project is "fastpure" unless WANDB_PROJECT says otherwise.
        step: done so far. Later ones of an earlier session, which was killed, are hidden in TensorBoard; Weights &
            Biases keeps the first value it was told for a step.
        identity: what tells runs apart; the same continues the same run of Weights & Biases.

    Raises:
        ValueError, MissingExtra: see `check_tracker`.
    """

    def __init__(self, name: str, folder: Path, step: int, identity: str) -> None:
        check_tracker(name)
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        PartialState()  # Accelerate's own log, which its trackers write, wants to know the processes first

        folder.mkdir(parents=True, exist_ok=True)
        self._tracker: Any
        if name == "tensorboard":
            self._tracker = TensorBoardTracker(name, logging_dir=str(folder), purge_step=step + 1)
        else:
            project = os.environ.get("WANDB_PROJECT", "fastpure")
            number = hashlib.sha256(f"{identity} {folder.resolve()}".encode()).hexdigest()[:16]
            self._tracker = WandBTracker(
                project, id=number, name=folder.name, dir=str(folder), resume="allow"
            )
        self._tracker.start()

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Send these numbers; those that are None are left out."""
        self._tracker.log({name: value for name, value in values.items() if value is not None}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._tracker.finish()
