"""Figures with axes: accuracy against a setting, all rows beside the paper's numbers, confidence along the steps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..purify import Target
from ..report.charts import Chart, Series, picture
from ..report.data import Entry
from ..report.figures import sweep_chart
from ..report.plotting import PALETTE, png, pyplot
from ..report.sweeps import sweeps
from ..reverse import RecordedNoise
from .experiment import Drawing
from .made import Made, asked, told
from .parts import Defence, Row
from .settings import Setting
from .tables import chosen, robust_of


def labelled(chart: Chart, made: Made, caption: str = "") -> bytes:
    """The chart as an SVG of its own, with what a small one is not in its title."""
    told = " ".join(filter(None, (caption, chart.caption)))
    return picture([replace(chart, title=f"{chart.title}{made.suffix}", caption=told)])


@final
@dataclass(frozen=True)
class Sweep(Drawing):
    """Clean and robust accuracy of the rows against the one setting in which they differ.

    Attributes:
        setting: its name in the method or attack.
    """

    name: str
    setting: str

    def draw(self, made: Made) -> Mapping[str, bytes]:
        """See `Drawing.draw`."""
        found = [one for one in sweeps(list(made.entries.values())) if one.setting == self.setting]
        if not found:
            made.note(f"{self.name}: nothing to draw, fewer than two rows were run")
            return {}
        return {f"{self.name}.svg": labelled(sweep_chart(found[0]), made)}


@final
@dataclass(frozen=True)
class Bars(Drawing):
    """Robust accuracy of every row with its interval, and the paper's number where it is known."""

    name: str

    def draw(self, made: Made) -> Mapping[str, bytes]:
        """See `Drawing.draw`."""
        rows = [(row, chosen(row, made.entries)) for row in made.rows]
        shown = [(row, pair) for row, pair in rows if pair is not None]
        if not shown:
            made.note(f"{self.name}: nothing to draw, no row was run")
            return {}
        plt, colours = pyplot(), PALETTE
        figure, axis = plt.subplots(figsize=(7.2, 1.3 + 0.42 * len(shown)), layout="constrained")
        for place, (row, _) in enumerate(shown):
            robust = robust_of(row, made.entries)
            assert robust is not None
            low, high, middle = 100 * robust.low, 100 * robust.high, 100 * robust.estimate
            axis.barh(place, middle, height=0.55, color=colours["s0"], alpha=0.75)
            axis.plot((low, high), (place, place), color=colours["ink"], linewidth=1.4)
            number = next((n.robust for n in row.published if n.robust is not None), None)
            if number is not None:
                label = None if axis.get_legend_handles_labels()[1] else "published, in its own setting"
                axis.plot(number, place, "D", color=colours["s1"], markersize=6, label=label, zorder=3)
        names = [f"{row.defence.label}\n{job.called(made.setting.small)}" for row, (job, _) in shown]
        axis.set_yticks(range(len(shown)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        said = f"\n{made.setting.label}" if made.setting.small else ""
        axis.set_xlabel(f"robust accuracy, % with 95 % Wilson intervals{said}", fontsize=8)
        figure.suptitle(textwrap.fill(made.title, 88), fontsize=10, x=0.01, ha="left")
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[1]:
            figure.legend(fontsize=8, frameon=False, loc="outside lower right")
        return {f"{self.name}.png": png(figure)}


@final
@dataclass(frozen=True)
class ConfidenceAlong(Drawing):
    """Confidence in the true class and in the attack's along the reverse process, without noise.

    Drawn over images that the attack of ``source`` made its defence get wrong without noise; the attack's class is
    the one that these purifications end in.

    Attributes:
        source: the row whose attack found the images.
        others: defences that purify them too, beside its own.
        most: images, at most.
    """

    name: str
    source: Row
    others: tuple[Defence, ...]
    most: int = 64

    @property
    def defences(self) -> tuple[Defence, ...]:
        """See `Drawing.defences`."""
        return (self.source.defence, *self.others)

    def calls(self, setting: Setting, images: int) -> int:
        """See `Drawing.calls`."""
        return sum(min(images, self.most) * setting.steps(one) for one in self.defences)

    def draw(self, made: Made) -> Mapping[str, bytes]:
        """See `Drawing.draw`."""
        entry = made.entry(self.source)
        if entry is None:
            made.note(f"{self.name}: nothing to draw, the attack was not run")
            return {}
        walks = {}
        for defence in self.defences:
            target = made.target(defence)
            if target is not None:
                made.say(f"confidence along {defence.label}")
                walks[defence] = self._walk(made, entry, target)
        classes = walks[self.source.defence][-1].argmax(1)
        labels = torch.from_numpy(entry.run.labels[: self.most])
        broken = classes != labels
        if not bool(broken.any()):
            made.note(f"{self.name}: nothing to draw, without noise the attack fools no image")
            return {}
        series = []
        for style, (defence, confidence) in enumerate(walks.items()):
            target = made.target(defence)
            assert target is not None
            table = target.method.table()
            times = (*(row.t for row in table.rows), 0.0)
            for which, wanted in (("true class", labels), ("attack's class", classes)):
                along = confidence[:, broken].gather(
                    2, wanted[broken][None, :, None].expand(len(confidence), -1, 1)
                )
                y = tuple(along.mean((1, 2)).tolist())
                series.append(
                    Series(f"{defence.label}, {which}", times, y, style=style, hollow=which[0] == "a")
                )
        chart = Chart(
            self.name,
            "Confidence along the steps, without noise",
            f"Means over {int(broken.sum())} of {len(labels)} images: those that "
            f"{self.source.defence.label} without noise gets wrong after the attack on it. Open marks: the class "
            "it ends in.",
            (entry,),
            tuple(series),
            x_label="diffusion time t (purification runs to the right)",
            y_label="confidence, %",
            percent=True,
            backwards=True,
            marks=len(times) <= 24,
        )
        return {f"{self.name}.svg": labelled(chart, made)}

    def _walk(self, made: Made, entry: Entry, target: Target) -> Tensor:
        """Probabilities [K + 1, B, classes] at every state."""
        what = {"kind": "confidence", "of": told(target), "on": entry.summary.digest, "most": self.most}
        found = made.kept.arrays(what, lambda: {"p": _probabilities(entry, target, self.most)})
        return torch.from_numpy(found["p"])


def _probabilities(entry: Entry, target: Target, most: int) -> np.ndarray:
    x, _, ids = asked(entry, target, entry.run.positions[:most], "adversarial")
    with torch.no_grad(), target.environment():
        parts = [
            target.classify(state, ids).double().softmax(1).cpu() for state in quiet_states(target, x, ids)
        ]
    return torch.stack(parts).numpy()


@torch.no_grad()
def quiet_states(target: Target, x: Tensor, ids: Tensor) -> Tensor:
    """Every state of the purification with all noise left out, [K + 1, B, C, H, W] in [0, 1] units."""
    rows = target.method.table().rows
    ahead = sum(row.forward for row in rows)
    noise = RecordedNoise(
        forward=x.new_zeros((ahead, *x.shape)) if ahead else None,
        steps=x.new_zeros((len(rows) - ahead, *x.shape)),
    )
    defense: Any = target.module
    states: Tensor = defense.purifier.trajectory(x, ids, 0, noise=noise)
    return states
