"""A table of seconds: one purification of an image by several methods from several times."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from ..baselines import Processor
from ..data import Dataset
from ..kernels import Domain
from ..purify import Target
from .experiment import Drawing
from .made import Made, told
from .parts import MISSING, Defence
from .settings import Setting

TURNS = 3
"""Measurements of each cell, of which the fastest counts: what else the machine does only adds."""


@final
@dataclass(frozen=True)
class Times(Drawing):
    """Seconds per image of one purification, the fastest of three turns after one that is not counted.

    Attributes:
        columns: heading -> the defences below it, the same methods in each, in order.
        seconds: per method the published time of one purification, where any is known, and of what.
        batch: images purified together.
    """

    name: str
    columns: tuple[tuple[str, tuple[Defence, ...]], ...]
    seconds: tuple[tuple[str, float | None, str], ...]
    batch: int = 16

    @property
    def defences(self) -> tuple[Defence, ...]:
        """See `Drawing.defences`."""
        return tuple(defence for _, column in self.columns for defence in column)

    def calls(self, setting: Setting, images: int) -> int:
        """See `Drawing.calls`."""
        return sum(min(images, self.batch) * (TURNS + 1) * setting.steps(one) for one in self.defences)

    def draw(self, made: Made) -> Mapping[str, bytes]:
        """See `Drawing.draw`."""
        if any(made.setting.missing(defence) for defence in self.defences):
            made.note(f"{self.name}: not measured, its networks were not given")
            return {}
        dataset = made.setting.dataset(made.images)
        rows: dict[str, list[float]] = {label: [] for label, _, _ in self.seconds}
        for heading, column in self.columns:
            for (label, _, _), defence in zip(self.seconds, column, strict=True):
                made.say(f"{label}, {heading}")
                target = made.target(defence)
                assert target is not None
                rows[label].append(self._measured(made, target, dataset))
        text = self._markdown(made, rows)
        values = {
            "setting": made.setting.label,
            "batch": self.batch,
            "machine": _machine(torch.device(made.setting.device)),
            "columns": [heading for heading, _ in self.columns],
            "seconds_per_image": rows,
            "published": {label: {"seconds": s, "of": of} for label, s, of in self.seconds},
        }
        content = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        return {f"{self.name}.md": text.encode(), f"{self.name}.json": content.encode()}

    def _measured(self, made: Made, target: Target, dataset: Dataset) -> float:
        what = {"kind": "seconds", "of": told(target), "batch": self.batch, "on": made.setting.device}
        here = _machine(target.device)

        def measure() -> dict[str, np.ndarray]:
            return {"s": np.array(self._time(target, dataset)), "machine": np.array(here)}

        def of_here(found: Mapping[str, np.ndarray]) -> bool:
            before = str(found["machine"]) if "machine" in found else "a machine that was not recorded"
            if before != here:
                made.note(f"Seconds had been measured on {before}; all were measured anew on {here}.")
            return before == here

        return float(made.kept.arrays(what, measure, of_here)["s"])

    @torch.no_grad()
    def _time(self, target: Target, dataset: Dataset) -> float:
        at = torch.arange(self.batch) % len(dataset)
        x, ids = dataset.batch(at).to(target.device), torch.arange(self.batch, device=target.device)
        best = float("inf")
        with target.environment():
            for turn in range(TURNS + 1):
                _wait(target.device)
                begin = time.perf_counter()
                target.purify(x, ids, torch.full_like(ids, turn), Domain.DEFENSE)
                _wait(target.device)
                if turn:
                    best = min(best, time.perf_counter() - begin)
        return best / self.batch

    def _markdown(self, made: Made, rows: Mapping[str, list[float]]) -> str:
        own = " (digits)" if made.setting.small else ""
        headings = [f"{heading}, s{own}" for heading, _ in self.columns]
        machine = _machine(torch.device(made.setting.device))
        lines = [
            f"Seconds per image, {self.batch} at a time on {machine}. Ours: {made.setting.label}.",
            "",
            f"| method | {' | '.join(headings)} | to the first row | published: s |",
            "|" + "---|" * (len(headings) + 3),
        ]
        first = next(iter(rows.values()))
        for label, published, of in self.seconds:
            cells = [f"{value:.3g}" for value in rows[label]]
            ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(rows[label], first, strict=True))
            paper = MISSING if published is None else f"{published:.3f} ({of})"
            lines.append(f"| {label} | {' | '.join(cells)} | {ratios} | {paper} |")
        return "\n".join(lines) + "\n"


def _machine(device: torch.device) -> str:
    """What computes there: seconds of one are no other's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(Processor.here())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
