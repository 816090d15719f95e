"""Figures on a plane through an image: where purification leads it, and the loss around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..kernels import Domain
from ..purify import Target
from ..report.data import Entry
from ..report.plotting import png, pyplot
from .curves import quiet_states
from .experiment import Drawing
from .made import Made, asked, fresh_draws, told
from .parts import Defence, Row
from .settings import Setting

ROWS = 256
"""Images per network call."""


@final
@dataclass(frozen=True)
class Panel:
    """One picture: a field on a grid, the line where it is one half, ways and points on it.

    Attributes:
        title: above it.
        axis: the grid's places, the same on both axes.
        values: [G, G], rows along the second axis.
        half: another field whose level 1/2 is drawn as a line, or None.
        ways: name -> two arrays of coordinates.
        points: name -> coordinates.
    """

    title: str
    axis: np.ndarray
    values: np.ndarray
    half: np.ndarray | None = None
    ways: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    points: dict[str, tuple[float, float]] = field(default_factory=dict)


def panels(
    rows: list[list[Panel]],
    title: str,
    labels: tuple[str, str],
    scale: str,
    share: tuple[float, float] | None,
) -> bytes:
    """The panels as a PNG. ``share``: the range of all values, their own if None."""
    plt = pyplot()
    size = (2.75 * len(rows[0]) + 1.2, 2.6 * len(rows) + 1.2)
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=size, squeeze=False, layout="constrained")
    low, high = share or (
        min(float(p.values.min()) for row in rows for p in row),
        max(float(p.values.max()) for row in rows for p in row),
    )
    drawn: Any = None
    for place, row in zip(axes, rows, strict=True):
        for axis, panel in zip(place, row, strict=True):
            levels = np.linspace(low, max(high, low + 1e-9), 21)
            drawn = axis.contourf(panel.axis, panel.axis, panel.values, levels, cmap="viridis", extend="both")
            if panel.half is not None and panel.half.min() < 0.5 < panel.half.max():
                axis.contour(panel.axis, panel.axis, panel.half, [0.5], colors="white", linewidths=1.4)
            for style, (name, (x, y)) in enumerate(panel.ways.items()):
                colour = ("#ffffff", "#ff9f5a", "#ff6fae", "#9fe8ff")[style % 4]
                axis.plot(x, y, color=colour, linewidth=1.5, label=name)
                axis.plot(x[-1], y[-1], "o", color=colour, markersize=5, markeredgecolor="black")
            for mark, (name, (px, py)) in zip("X*Dv", panel.points.items(), strict=False):
                axis.plot(
                    px,
                    py,
                    mark,
                    color="#ff5a5a",
                    markeredgecolor="black",
                    markersize=8,
                    label=name,
                    linestyle="none",
                )
            axis.set_title(panel.title, fontsize=8)
            axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel(labels[0], fontsize=7)
    for place in axes:
        place[0].set_ylabel(labels[1], fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.colorbar(drawn, ax=axes, label=scale, shrink=0.8).ax.tick_params(labelsize=7)
    handles, names = axes[0][0].get_legend_handles_labels()
    look = {"fontsize": 8, "facecolor": "#6a7080", "labelcolor": "white"}
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), **look)
    return png(figure)


@final
@dataclass(frozen=True)
class Plane:
    """Two directions through an image, at right angles.

    Attributes:
        origin: [C, H, W].
        along, across: [D], across at right angles to along; coordinates count in lengths of along.
    """

    origin: Tensor
    along: Tensor
    across: Tensor

    @staticmethod
    def through(origin: Tensor, first: Tensor, second: Tensor) -> Plane:
        """Spanned by the ways from ``origin`` to ``first`` and to ``second``, [C, H, W] each.

        Where the second lies on the line of the first, an arbitrary fixed direction takes its place.
        """
        one = (first - origin).flatten().double()
        one = one if float(one.norm()) > 0 else torch.ones_like(one)
        two = (second - origin).flatten().double()
        for candidate in (two, torch.linspace(-1, 1, len(one), dtype=torch.float64, device=one.device)):
            rest = candidate - one * (candidate @ one) / (one @ one)
            if float(rest.norm()) > 1e-6 * float(one.norm()):
                return Plane(origin, one, rest * one.norm() / rest.norm())
        raise AssertionError("one of two directions is not along the first")

    def place(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the nearest points of the plane to images [N, C, H, W]."""
        ways = (images - self.origin).flatten(1).double()
        unit = float(self.along @ self.along)
        return (ways @ self.along / unit).cpu().numpy(), (ways @ self.across / unit).cpu().numpy()

    def grid(self, axis: np.ndarray) -> Tensor:
        """Its points at all pairs of places, [G * G, C, H, W], the first axis varying fastest; clamped to [0, 1]."""
        points = [self.along * a + self.across * b for b, a in product(axis.tolist(), axis.tolist())]
        flat = self.origin.flatten().double() + torch.stack(points)
        return flat.view(-1, *self.origin.shape).clamp(0, 1).to(self.origin.dtype)


@final
@dataclass(frozen=True)
class Paths(Drawing):
    """Where reverse processes lead an attacked image, without noise: on the plane of the attack and of the first's end.

    The colour is the probability of the true class by the classifier alone, the white line where it is one half.

    Attributes:
        source: the row whose attack found the images; its defence's way is the first.
        others: defences whose ways are drawn, too.
        most: images, those first that the classifier alone gets wrong.
        places: points of the grid along each axis.
    """

    name: str
    source: Row
    others: tuple[Defence, ...]
    most: int = 3
    places: int = 41

    @property
    def defences(self) -> tuple[Defence, ...]:
        """See `Drawing.defences`."""
        return (self.source.defence, *self.others)

    def calls(self, setting: Setting, images: int) -> int:
        """See `Drawing.calls`; the grid asks the classifier alone."""
        return sum(min(images, self.most) * setting.steps(one) for one in self.defences)

    def draw(self, made: Made) -> Mapping[str, bytes]:
        """See `Drawing.draw`."""
        entry, target = made.entry(self.source), made.target(self.source.defence)
        if entry is None or target is None:
            made.note(f"{self.name}: nothing to draw, the attack was not run")
            return {}
        x, y, ids = asked(entry, target, entry.run.positions, "adversarial")
        with torch.no_grad():
            right = (target.classify(x, ids).argmax(1) == y).cpu().numpy()
        order = np.argsort(right, kind="stable")[: self.most]
        positions = entry.run.positions[order]
        x, y, ids = asked(entry, target, positions, "adversarial")
        clean, _, _ = asked(entry, target, positions, "clean")
        ways = {}
        for defence in self.defences:
            own = made.target(defence)
            if own is not None:
                made.say(f"ways of {defence.label}")
                ways[defence.label] = quiet_states(own, x, ids)
        shown = [
            self._panel(made, target, clean[i], x[i], int(y[i]), ids[i], ways, i, entry)
            for i in range(len(x))
        ]
        title = f"Where purification leads an attacked image, without noise{made.suffix}"
        labels = ("along the attack", "across")
        return {
            f"{self.name}.png": panels([shown], title, labels, "P(true class), classifier alone", (0.0, 1.0))
        }

    def _panel(
        self,
        made: Made,
        target: Target,
        clean: Tensor,
        attacked: Tensor,
        label: int,
        name: Tensor,
        ways: dict[str, Tensor],
        i: int,
        entry: Entry,
    ) -> Panel:
        first = next(iter(ways.values()))
        plane = Plane.through(clean, attacked, first[-1, i])
        drawn = {words: plane.place(states[:, i]) for words, states in ways.items()}
        seen = np.concatenate([np.array([0.0, 1.0]), *(np.concatenate(pair) for pair in drawn.values())])
        room = 0.12 * (seen.max() - seen.min())
        axis = np.linspace(seen.min() - room, seen.max() + room, self.places)
        points = plane.grid(axis)
        with torch.no_grad(), target.environment():
            parts = [
                target.classify(part, name.expand(len(part))).double().softmax(1)[:, label]
                for part in points.split(ROWS)
            ]
        values = torch.cat(parts).view(self.places, self.places).cpu().numpy()
        marks = {"attacked image": (1.0, 0.0), "original": (0.0, 0.0)}
        return Panel(f"true class {entry.class_names[label]}", axis, values, values, drawn, marks)


@final
@dataclass(frozen=True)
class Landscape(Drawing):
    """The defended classifier's loss on the plane of two attacks: mean over fresh draws, and under the held noise.

    Attributes:
        stochastic: the row of an attack that averages over noise; its defence is drawn.
        known: a row of the same defence whose attack knows the noise.
        most: images.
        places: points of the grid along each axis.
        draws: fresh draws that are averaged.
    """

    name: str
    stochastic: Row
    known: Row
    most: int = 2
    places: int = 13
    draws: int = 8

    @property
    def defences(self) -> tuple[Defence, ...]:
        """See `Drawing.defences`."""
        return (self.stochastic.defence,)

    def calls(self, setting: Setting, images: int) -> int:
        """See `Drawing.calls`."""
        points = min(images, self.most) * self.places**2 * (self.draws + 1)
        return points * setting.steps(self.stochastic.defence)

    def draw(self, made: Made) -> Mapping[str, bytes]:
        """See `Drawing.draw`."""
        entry, other = made.entry(self.stochastic), made.entry(self.known)
        target = made.target(self.stochastic.defence)
        if entry is None or other is None or target is None:
            made.note(f"{self.name}: nothing to draw, one of its attacks was not run")
            return {}
        positions = entry.run.positions[: self.most]
        clean, y, ids = asked(entry, target, positions, "clean")
        ends = [asked(one, target, positions, "adversarial")[0] for one in (entry, other)]
        axis = np.linspace(-0.5, 1.5, self.places)
        rows: list[list[Panel]] = [[], []]
        for i in range(len(clean)):
            plane = Plane.through(clean[i], ends[0][i], ends[1][i])
            made.say(f"loss around image {i + 1} of {len(clean)}")
            what = {
                "kind": "landscape",
                "of": told(target),
                "on": [one.summary.digest for one in (entry, other)],
                "image": int(positions[i]),
                "grid": [self.places, self.draws],
            }
            found = made.kept.arrays(what, lambda p=plane, i=i: self._fields(target, p, axis, y[i], ids[i]))  # type: ignore[misc]
            knowing = plane.place(ends[1][i : i + 1])
            marks = {
                "attack over draws": (1.0, 0.0),
                "attack that knows the noise": (float(knowing[0][0]), float(knowing[1][0])),
                "original": (0.0, 0.0),
            }
            truth = entry.class_names[int(y[i])]
            for row, kind, said in zip(
                rows, ("mean", "known"), (f"mean of {self.draws} draws", "known noise"), strict=True
            ):
                loss, right = found[f"{kind}_loss"], found[f"{kind}_right"]
                row.append(Panel(f"class {truth}, {said}", axis, loss, right, {}, marks))
        title = f"Loss around the originals{made.suffix}"
        labels = ("along the attack over draws", "across")
        return {f"{self.name}.png": panels(rows, title, labels, "cross-entropy", None)}

    def _fields(
        self, target: Target, plane: Plane, axis: np.ndarray, y: Tensor, name: Tensor
    ) -> dict[str, np.ndarray]:
        points = plane.grid(axis)
        shape = (self.places, self.places)
        with target.fixed(0):
            known = _losses(target, points, y, name, range(1))
        mean = _losses(target, points, y, name, fresh_draws(self.draws))
        pairs = {"known": known, "mean": mean}
        return {
            f"{kind}_{which}": array.mean(1).reshape(shape)
            for kind, pair in pairs.items()
            for which, array in zip(("loss", "right"), pair, strict=True)
        }


@torch.no_grad()
def _losses(
    target: Target, points: Tensor, y: Tensor, name: Tensor, draws: range
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropies and whether the class is right, float64 [N, K]; all points are one image, with one id."""
    image = torch.arange(len(points), device=points.device).repeat_interleave(len(draws))
    draw = torch.tensor(list(draws), device=points.device).repeat(len(points))
    losses, rights = [], []
    with target.environment():
        for part in torch.arange(len(image), device=points.device).split(ROWS):
            at = image[part]
            answers = target.logits(points[at], name.expand(len(at)), draw[part], Domain.EVALUATION).double()
            losses.append(-answers.log_softmax(1)[:, int(y)].cpu())
            rights.append((answers.argmax(1) == y).double().cpu())
    shape = (len(points), len(draws))
    return torch.cat(losses).view(shape).numpy(), torch.cat(rights).view(shape).numpy()
