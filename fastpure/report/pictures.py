"""What a run's images look like: originals, adversarial images, noise, and what the purification makes of them.

Pictures of purified images and the bare classifier's opinion need the defence itself. Where it is not there, its
recorded decisions are shown and the page says what is missing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ..evaluate.protocol import FIRST_DRAW
from ..evaluate.work import frozen
from ..kernels import Domain
from ..purify import Target
from .data import Entry

ROWS = 64
"""Images per network call."""

KINDS = {
    "caught": "the bare classifier errs, the defence does not: a flip was caught",
    "caused": "the bare classifier is right, the defence errs: a flip was caused",
    "both err": "the bare classifier and the defence err",
    "both right": "the bare classifier and the defence are right",
    "broken": "right before the attack, wrong after",
    "resisted": "right before and after",
    "right": "right on the original",
    "wrong": "wrong on the original",
}
"""What can have happened to an image; the defence counts as right if at least half of its draws are."""


@final
@dataclass(frozen=True, eq=False)
class Tile:
    """One picture [C, H, W] in [0, 1], the class it was given, and whether that is right; None where none was."""

    image: np.ndarray
    alt: str
    verdict: str = ""
    right: bool | None = None

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return data_uri(self.image)

    @property
    def mark(self) -> str:
        """The verdict with a sign for right or wrong; "" where there is none."""
        return "" if self.right is None else f"{'✓' if self.right else '✗'} {self.verdict}"


@final
@dataclass(frozen=True)
class Column:
    """One image: its place, id, true class and what happened to it (a key of `KINDS`)."""

    position: int
    sample_id: int
    label: str
    kind: str


@final
@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures of one run; ``rows`` are (name, explanation, tiles). ``note`` says why nothing could be purified.

    ``meanings`` explains the kinds of its columns.
    """

    entry: Entry
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, str, tuple[Tile, ...]], ...]
    flips: tuple[tuple[str, tuple[float, ...]], ...]
    note: str
    meanings: Mapping[str, str] = field(default_factory=lambda: KINDS)

    @property
    def remark(self) -> str:
        """What is missing and why, a sentence; "" if nothing is."""
        if self.note:
            missing = "Purified images and the bare classifier's opinion are not shown"
            return f"{missing}, because the defence could not be rebuilt: {self.note}."
        return "" if self.entry.purified else "Nothing purifies in this run: there is no purified image."

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of images that occur, explained."""
        own = {column.kind for column in self.columns}
        return {kind: meaning for kind, meaning in self.meanings.items() if kind in own}


def gallery(entry: Entry, target: Target | None, n_images: int, note: str = "") -> Gallery:
    """Pictures of up to ``n_images`` images, of every kind that occurs in turn, and counts of label flips.

    Args:
        target: the defence of the run (its identity was compared), or None.
        note: why it is None.
    """
    bare = None
    if target is not None and target.purifies:
        every = torch.from_numpy(entry.run.sample_ids)
        bare = {which: bare_classes(target, entry.run.images(which), every) for which in _inputs(entry)}
    kinds = what_happened(entry, bare)
    chosen = choose(kinds, n_images)
    positions = entry.run.positions[chosen].tolist()
    names, labels, ids = entry.class_names, entry.run.labels[chosen], entry.run.sample_ids[chosen]
    columns = tuple(
        Column(p, int(i), names[y], kinds[k])
        for p, i, y, k in zip(positions, ids, labels, chosen, strict=True)
    )
    rows = []
    for which in _inputs(entry):
        x = entry.run.images(which, positions)
        opinion = None if bare is None else bare[which][chosen]
        rows.append(given_row(entry, which, x, chosen, opinion))
        if target is not None and target.purifies and which == entry.judged:
            rows.append(purified_row(entry, target, which, x, chosen))
    if entry.attacked:
        rows.insert(1, noise_row(entry, positions))
    return Gallery(entry, columns, tuple(rows), () if bare is None else flips(entry, bare), note)


def bare_classes(target: Target, x: np.ndarray, ids: Tensor) -> np.ndarray:
    """Classes int64 [n] that the classifier without purification gives to images [n, C, H, W] of these ids [n]."""
    device = target.device
    parts = zip(torch.from_numpy(x).split(ROWS), ids.split(ROWS), strict=True)
    with torch.no_grad():
        batches = [target.classify(part.to(device), own.to(device)).argmax(1).cpu() for part, own in parts]
    return torch.cat(batches).numpy() if batches else np.zeros(0, np.int64)


def flips(entry: Entry, bare: dict[str, np.ndarray]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Per input: shares of (image, draw) pairs where both are right, a flip was caught, caused, both err."""
    found = []
    for which, classes in bare.items():
        alone = (classes == entry.run.labels)[:, None]
        right = entry.run.correct(which)
        shares = (alone & right, ~alone & right, alone & ~right, ~alone & ~right)
        found.append((which, tuple(float(share.mean()) for share in shares)))
    return tuple(found)


def what_happened(entry: Entry, bare: dict[str, np.ndarray] | None) -> list[str]:
    """A key of `KINDS` for every finished image."""
    clean = entry.run.correct("clean").mean(1) >= 0.5
    last = entry.run.correct(entry.judged).mean(1) >= 0.5
    if bare is not None:
        alone = bare[entry.judged] == entry.run.labels
        table = {(True, True): "both right", (True, False): "caused", (False, True): "caught"}
        return [table.get((bool(a), bool(b)), "both err") for a, b in zip(alone, last, strict=True)]
    if not entry.attacked:
        return ["right" if ok else "wrong" for ok in last]
    after = ["resisted" if ok else "broken" for ok in last]
    return [name if ok else "wrong" for ok, name in zip(clean, after, strict=True)]


def choose(kinds: Sequence[str], n: int, known: Mapping[str, str] = KINDS) -> list[int]:
    """Indices of ``n`` images: one of each ``known`` kind in turn, in order of position within a kind."""
    waiting = {kind: [i for i, own in enumerate(kinds) if own == kind] for kind in known}
    taken: list[int] = []
    while len(taken) < n and any(waiting.values()):
        for queue in waiting.values():
            if queue and len(taken) < n:
                taken.append(queue.pop(0))
    order = list(known)
    return sorted(taken, key=lambda i: (order.index(kinds[i]), i))


def states_of(entry: Entry, target: Target, which: str, positions: Sequence[int]) -> Tensor:
    """Every state of the purification of these images on the first evaluation draw, [K + 1, B, C, H, W]."""
    x, ids = _asked(entry, target, entry.run.images(which, positions), positions)
    with torch.no_grad(), frozen(target, entry.run.protocol):
        return target.trajectory(x, ids, torch.full_like(ids, FIRST_DRAW), Domain.EVALUATION)


def purified_images(entry: Entry, target: Target, which: str, positions: Sequence[int]) -> Tensor:
    """These images purified on the first evaluation draw, float32 [B, C, H, W] on the host."""
    x, ids = _asked(entry, target, entry.run.images(which, positions), positions)
    found = []
    with torch.no_grad(), frozen(target, entry.run.protocol):
        for part, own in zip(x.split(ROWS), ids.split(ROWS), strict=True):
            draws = torch.full_like(own, FIRST_DRAW)
            found.append(target.purify(part, own, draws, Domain.EVALUATION).float().cpu())
    return torch.cat(found)


def data_uri(image: np.ndarray) -> str:
    """A PNG of [C, H, W] in [0, 1] as a data URI."""
    buffer = io.BytesIO()
    picture(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(image: np.ndarray) -> Any:
    """[C, H, W] in [0, 1] (clamped) as a `PIL.Image.Image`: grey for one channel, colour for three."""
    from PIL import Image

    pixels = np.rint(np.clip(image.astype(np.float64), 0.0, 1.0) * 255).astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])


def _inputs(entry: Entry) -> tuple[str, ...]:
    return ("clean", "adversarial") if entry.attacked else ("clean",)


def _asked(entry: Entry, target: Target, x: np.ndarray, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    place = {int(p): i for i, p in enumerate(entry.run.positions)}
    ids = torch.from_numpy(entry.run.sample_ids[[place[int(p)] for p in positions]])
    return torch.from_numpy(x).to(target.device), ids.to(target.device)


Row = tuple[str, str, tuple[Tile, ...]]


def given_row(entry: Entry, which: str, x: np.ndarray, chosen: list[int], bare: np.ndarray | None) -> Row:
    """Images [m, C, H, W] of a run as they came, its indices ``chosen``; ``bare``: the classifier's own answers [m]."""
    right = entry.run.correct(which)[chosen]
    tiles = []
    for i in range(len(x)):
        truth, name = int(entry.run.labels[chosen[i]]), noun(entry, which)
        alt = f"{name} image {int(entry.run.positions[chosen[i]])} of class {entry.class_names[truth]}"
        own = entry.run.predicted(which)[chosen[i]]
        guess = _most_frequent(own) if bare is None else int(bare[i])
        count = f" · {int(right[i].sum())}/{right.shape[1]}" if bare is None and right.shape[1] > 1 else ""
        tiles.append(Tile(x[i], alt, _name(entry, guess) + count, guess == truth))
    if bare is not None:
        said = "class by the bare classifier"
    else:
        by = "class by the defence" if entry.purified else "class by the classifier"
        said = "most frequent class, draws that are right" if right.shape[1] > 1 else by
    return noun(entry, which), said, tuple(tiles)


def purified_row(entry: Entry, target: Target, which: str, x: np.ndarray, chosen: list[int]) -> Row:
    """The same, purified by the run's defence on its first evaluation draw."""
    images, ids = _asked(entry, target, x, entry.run.positions[chosen].tolist())
    with torch.no_grad(), frozen(target, entry.run.protocol):
        purified = target.purify(images, ids, torch.full_like(ids, FIRST_DRAW), Domain.EVALUATION)
        draws = torch.full_like(ids, FIRST_DRAW)
        guesses = target.classify(purified, ids, draws).argmax(1).cpu().numpy()
    right = entry.run.correct(which)[chosen]
    tiles = []
    for i, image in enumerate(purified.float().cpu().numpy()):
        alt = f"purified image {int(entry.run.positions[chosen[i]])}"
        count = f" · {int(right[i].sum())}/{right.shape[1]}" if right.shape[1] > 1 else ""
        own = int(guesses[i])
        tiles.append(Tile(image, alt, _name(entry, own) + count, own == int(entry.run.labels[chosen[i]])))
    said = "class by the defence on its first draw" + (", draws that are right" if right.shape[1] > 1 else "")
    return f"{noun(entry, which)}, purified", said, tuple(tiles)


def noise_row(entry: Entry, positions: list[int]) -> Row:
    """What the attack added to the images at these positions, magnified."""
    noise = entry.run.images("adversarial", positions).astype(np.float64) - entry.run.images(
        "clean", positions
    )
    largest = float(np.abs(noise).max(initial=0.0))
    factor = 0.5 / largest if largest > 0 else 1.0
    tiles = tuple(
        Tile(0.5 + factor * image, f"noise on image {p}, {factor:.3g} times magnified")
        for image, p in zip(noise, positions, strict=True)
    )
    return "noise", f"{factor:.3g} times magnified, grey is none", tiles


def noun(entry: Entry, which: str) -> str:
    """What images of an input are called: "clean", "adversarial" or "corrupted"."""
    return "corrupted" if which == "adversarial" and entry.corrupted else which


def _most_frequent(predicted: Any) -> int:
    return int(np.bincount(np.asarray(predicted)).argmax())


def _name(entry: Entry, index: int) -> str:
    return entry.class_names[index] if 0 <= index < len(entry.class_names) else f"class {index}"
