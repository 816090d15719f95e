"""`fit`: the one training loop. What is trained comes in as values: network, loss, data, configuration."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..data import Dataset
from ..errors import NonFiniteError, whole
from ..progress import Progress
from ..shown import Fields
from ..trackers import Tracker, check_tracker
from .config import TrainConfig, learning_rate
from .losses import Loss
from .progress import stop_requests
from .state import METRICS, Metrics, RunFolder
from .trainer import Group, Trainer


@final
@dataclass(frozen=True, repr=False)
class Fit(Fields):
    """What a call of `fit` came to.

    Fields:
        model: the averaged network, in evaluation mode, weights frozen.
        step: steps done in all; less than ``TrainConfig.steps`` if it was interrupted.
        resumed_at: the step this call began with (equal to ``step`` if the run was finished before).
        seconds: training time, earlier sessions included.
        finished: whether all steps are done.
        main: whether this process is the one that writes files (always, if it is alone).
        extended: after how many steps the run was finished before it was given more.
    """

    model: nn.Module
    step: int
    resumed_at: int
    seconds: float
    finished: bool
    main: bool = True
    extended: tuple[int, ...] = ()


def fit(
    model: nn.Module,
    loss: Loss,
    dataset: Dataset,
    config: TrainConfig,
    *,
    out: str | Path,
    network: Mapping[str, Any],
    held_out: Callable[[nn.Module], float] | None = None,
    products: tuple[str, ...] = (),
    device: str | torch.device = "cpu",
    save_every: int = 500,
    progress: bool = True,
    tensorboard: bool = False,
    trackers: Sequence[str] = (),
    group: Group | None = None,
) -> Fit:
    """Train, or continue the run of the same configuration that ``out`` holds.

    Ctrl-C or SIGTERM ends the current step, saves and returns; calling again goes on from there, and gives
    the same bits as a run that was never interrupted.

    A finished run goes on when ``config`` has more steps and is otherwise the same. The learning rate then follows the
    schedule of the new number: a cosine, which had come down to zero, rises to where the longer one stands. With a
    constant rate the result is that of a run which had as many steps from the beginning.

    Args:
        model: trained in place.
        network: its configuration, as plain values; with the loss, ``config`` and the data's checksum it
            says which runs are the same.
        held_out: score of the averaged network every ``score_every`` steps, for ``metrics.csv``.
        products: files the caller will write into ``out`` at the end; never overwritten in a folder
            that holds no run.
        save_every: steps between checkpoints.
        tensorboard: the same as "tensorboard" among the trackers.
        trackers: where losses and learning rate go besides ``metrics.csv``, see ``fastpure.trackers``.
        group: the processes that train together; only the first of them touches ``out``.

    Raises:
        MissingExtra: a tracker is wanted and not installed.
        ResumeError: ``out`` holds another or a damaged run; nothing is overwritten.
        RunLocked: another process trains into it.
        StoreUnavailable, DiskFull: it cannot be written; the last checkpoint stays as it was.
        NonFiniteError: the loss is NaN or Inf; the last checkpoint stays as it was.
    """
    whole("save_every", save_every, 1)
    identity = {
        "train": asdict(config),
        "loss": loss.to_dict(),
        "network": dict(network),
        "data": {"name": dataset.name, "split": dataset.split, "checksum": dataset.checksum},
    }
    group = Group() if group is None else group
    wanted = dict.fromkeys([*(["tensorboard"] if tensorboard else []), *trackers])
    for name in wanted:
        check_tracker(name)
    trainer = Trainer(model, loss, dataset, config, device, group)
    folder = RunFolder(Path(out), identity)
    with ExitStack() as held:
        saved = group.from_main(lambda: folder.claim(products, held))
        session = _Session(trainer, folder, held_out)
        session.begin(saved, list(wanted))
        first = session.trainer.step
        if first < config.steps:
            session.run(config, save_every, progress)
    step = session.trainer.step
    done, extended = step >= config.steps, tuple(folder.extended)
    return Fit(session.trainer.average, step, first, session.seconds, done, group.main, extended)


@final
class _Session:
    """One call of `fit`: the trainer, its files, and the losses that wait for their row in the metrics."""

    def __init__(
        self, trainer: Trainer, folder: RunFolder, held_out: Callable[[nn.Module], float] | None
    ) -> None:
        self.trainer, self.folder, self.held_out = trainer, folder, held_out
        self.main = trainer.group.main
        self.trackers: list[Tracker] = []
        self.metrics = Metrics(folder.path / METRICS)
        self.pending: list[Tensor] = []
        self.seconds = 0.0
        self.shown: float | None = None

    def begin(self, saved: dict[str, Any] | None, trackers: Sequence[str] = ()) -> None:
        if saved is not None:
            length = int(saved["metrics_length"])
            self.trainer.group.from_main(lambda: self.metrics.resume(length))
            self.trainer.restore(saved)
            self.seconds = float(saved["seconds"])
            self.pending = [loss.to(self.trainer.device) for loss in saved["pending"]]
        elif self.main:
            self.save()  # first: what has no checkpoint is no run, and would be refused after a kill
            self.metrics.start()
        if self.main:
            identity = json.dumps(self.folder.identity, sort_keys=True)
            place, step = self.folder.path, self.trainer.step
            self.trackers = [Tracker(name, place, step, identity) for name in trackers]

    def run(self, config: TrainConfig, save_every: int, progress: bool) -> None:
        bar = Progress(
            config.steps, "steps", done=self.trainer.step, doing="training", shown=progress and self.main
        )
        stop, group = False, self.trainer.group
        try:
            with stop_requests() as request:
                while self.trainer.step < config.steps and not stop:
                    self.one_step(config, save_every)
                    stop = group.any(request.asked)
                    bar.to(self.trainer.step, note="" if self.shown is None else f"loss {self.shown:.4f}")
                if stop:
                    self.save()
        finally:
            bar.close()
            for tracker in self.trackers:
                tracker.close()

    def one_step(self, config: TrainConfig, save_every: int) -> None:
        started = time.monotonic()
        self.pending.append(self.trainer.advance())
        step, last = self.trainer.step, self.trainer.step == config.steps
        self.seconds += time.monotonic() - started
        if step % config.log_every == 0 or last:
            self.log(config, score=last or step % config.score_every == 0)
        if step % save_every == 0 or last:
            self.save()

    def log(self, config: TrainConfig, score: bool) -> None:
        step = self.trainer.step
        self.shown = torch.stack(self.pending).mean().item()
        if not math.isfinite(self.shown):
            raise NonFiniteError(
                f"the training loss became {self.shown} before step {step}; the checkpoint in "
                f"{self.folder.path} is older and intact. Try a lower learning rate or stronger clipping"
            )
        self.pending = []
        if not self.main:
            return
        held_out = self.held_out(self.trainer.average) if score and self.held_out is not None else None
        rate = learning_rate(config, step - 1)
        self.metrics.row(step, self.shown, rate, self.seconds, held_out)
        shown = {"loss/train": self.shown, "learning_rate": rate, "loss/held_out": held_out}
        for tracker in self.trackers:
            tracker.log(shown, step)

    def save(self) -> None:
        if not self.main:
            return
        if self.pending and not torch.stack(self.pending).isfinite().all():
            return  # a diverged state is not worth keeping; the next row says so
        self.folder.save(
            {
                **self.trainer.state(),
                "seconds": self.seconds,
                "pending": [loss.cpu() for loss in self.pending],
                "metrics_length": self.metrics.length,
            }
        )
