"""What a drawing draws from: the finished runs of an experiment, its defences, and what was computed before."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..evaluate.identity import canonical, code_sha256
from ..evaluate.protocol import FIRST_DRAW
from ..files import replacing
from ..kernels import Domain
from ..purify import Target, look_through
from ..report.data import Entry
from .parts import Defence, Images, Job, Row
from .settings import Setting

PIECES = "pieces"
"""Folder for what drawings have computed."""


@final
class Kept:
    """Arrays by what they depend on, one file each: a killed command finds those it had finished.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def arrays(
        self,
        what: Any,
        compute: Callable[[], Mapping[str, np.ndarray]],
        holds: Callable[[Mapping[str, np.ndarray]], bool] = lambda found: True,
    ) -> dict[str, np.ndarray]:
        """Those that were computed for ``what`` (plain values: settings, digests), or ``compute()``, then kept.

        ``holds``: of those that were found, whether they still count; they are computed anew otherwise.
        """
        told = canonical({"what": what, "code": code_sha256(), "torch": str(torch.__version__)})
        path = self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.npz"
        found = self._read(path)
        if found is None or not holds(found):
            found = {name: np.asarray(array) for name, array in compute().items()}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **found)  # type: ignore[arg-type]
            with replacing(path) as file:
                file.write(buffer.getvalue())
        return found

    def _read(self, path: Path) -> dict[str, np.ndarray] | None:
        try:
            with np.load(path, allow_pickle=False) as saved:
                return {name: saved[name] for name in saved.files}
        except Exception:  # not there, cut off, or another's: computed again
            return None


@final
@dataclass(frozen=True, eq=False)
class Made:
    """What there is when an experiment is drawn.

    Attributes:
        title, rows, images: of the experiment.
        setting: its size.
        entries: finished runs.
        kept: what drawings have computed.
        say: for progress.
        notes: sentences that drawings want told beside them.
    """

    title: str
    rows: tuple[Row, ...]
    images: Images
    setting: Setting
    entries: Mapping[Job, Entry]
    kept: Kept
    say: Callable[[str], None] = lambda text: None
    notes: list[str] = field(default_factory=list)

    @property
    def suffix(self) -> str:
        """Behind titles: what a small number is not."""
        return f" ({self.setting.label})" if self.setting.small else ""

    def entry(self, row: Row) -> Entry | None:
        """The run of a row's first attack; None if it was not run."""
        return self.entries.get(Job(row))

    def target(self, defence: Defence) -> Target | None:
        """The defence, on its device; None if its networks were not given."""
        if self.setting.missing(defence):
            return None
        return look_through(self.setting.defence(defence))

    def note(self, text: str) -> None:
        """Say ``text`` beside the results, once."""
        if text not in self.notes:
            self.notes.append(text)


def asked(entry: Entry, target: Target, positions: np.ndarray, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, C, H, W] of a run, their labels and their ids [B], where ``target`` is."""
    place = {int(p): i for i, p in enumerate(entry.run.positions)}
    at = [place[int(p)] for p in positions]
    x = torch.from_numpy(entry.run.images(which, positions.tolist()))
    y, ids = (torch.from_numpy(column[at]) for column in (entry.run.labels, entry.run.sample_ids))
    return x.to(target.device), y.to(target.device), ids.to(target.device)


def fresh_draws(n: int) -> range:
    """Numbers of the evaluation draws that protocols use, too."""
    return range(FIRST_DRAW, FIRST_DRAW + n)


@torch.no_grad()
def probabilities(target: Target, x: Tensor, ids: Tensor, draws: range, rows: int = 256) -> Tensor:
    """Softmax [B, K, classes] float64 of the defence's answers on these evaluation draws, on the host."""
    image = torch.arange(len(x), device=x.device).repeat_interleave(len(draws))
    draw = torch.tensor(list(draws), device=x.device).repeat(len(x))
    found = []
    with target.environment():
        for part in torch.arange(len(image), device=x.device).split(rows):
            at = image[part]
            found.append(
                target.logits(x[at], ids[at], draw[part], Domain.EVALUATION).double().softmax(1).cpu()
            )
    return torch.cat(found).view(len(x), len(draws), -1) if found else torch.zeros(0, len(draws), 0)


def told(target: Target) -> Any:
    """What a defence is, as plain values: with all weights' digests."""
    return json.loads(canonical(target.describe()))
