"""What a run's images look like: originals, adversarial images, noise, and what the purification makes of them.

Pictures of purified images and the bare classifier's opinion need the defence itself. Where it is not there, its
recorded decisions are shown and the page says what is missing. One rule says what counts as right, see `majority`: for
the headings above images and for the verdicts below them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from ..diagnostics.quality import image_quality
from ..evaluate.protocol import FIRST_DRAW
from ..evaluate.work import frozen
from ..kernels import Domain
from ..purify import Target
from .data import Entry
from .plotting import perturbation

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
"""What can have happened to an image; which answer counts as right says `majority`."""

TIE = -1
"""In place of a class where two are equally frequent."""


@final
@dataclass(frozen=True, eq=False)
class Tile:
    """One picture [C, H, W] in [0, 1], the class it was given, and whether that is right; None where none was.

    ``quality`` says in numbers how far a purified picture is from the original.
    """

    image: np.ndarray
    alt: str
    verdict: str = ""
    right: bool | None = None
    quality: str = ""

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
    def rule(self) -> str:
        """How marks are to be read, sentences."""
        drawn = any(" · " in tile.verdict for _, _, row in self.rows for tile in row)
        return " ".join(filter(None, ("✓ right, ✗ wrong.", RULE if drawn else "", self.measures)))

    @property
    def measures(self) -> str:
        """What the numbers below purified pictures are, a sentence; "" where there are none."""
        measured = [tile.quality.count(" · ") for _, _, row in self.rows for tile in row if tile.quality]
        names = ("PSNR in dB", "SSIM", "LPIPS")[: max(measured, default=0) + 1]
        against = f"Purified pictures are those of the first draw; below them {', '.join(names)} against the original."
        return against if measured else ""

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of images that occur, explained."""
        own = {column.kind for column in self.columns}
        return {kind: meaning for kind, meaning in self.meanings.items() if kind in own}


RULE = (
    "The most frequent class of all draws counts, in headings and below pictures alike; a tie is wrong. "
    "k/n: right on k of n draws."
)
"""`majority` in words."""


def majority(predicted: np.ndarray) -> np.ndarray:
    """The most frequent class of each row of [n, draws], int64 [n]; `TIE` where two are."""
    found = np.full(len(predicted), TIE, np.int64)
    for i, row in enumerate(predicted):
        classes, counts = np.unique(row, return_counts=True)
        if len(counts) and (counts == counts.max()).sum() == 1:
            found[i] = classes[counts.argmax()]
    return found


def decided(entry: Entry, which: str) -> np.ndarray:
    """Whether most draws of each finished image are right, bool [n]."""
    return majority(entry.run.predicted(which)) == entry.run.labels


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
        if target is not None and target.purifies:
            rows.append(purified_row(entry, target, which, x, chosen))
    if entry.attacked:
        place = next(i for i, (name, _, _) in enumerate(rows) if name == noun(entry, "adversarial"))
        rows.insert(place, noise_row(entry, positions))
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
    clean, last = decided(entry, "clean"), decided(entry, entry.judged)
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
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels(image)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def pixels(image: np.ndarray) -> np.ndarray:
    """[C, H, W] in [0, 1] (clamped) as uint8: [H, W] for one channel, [H, W, 3] for three."""
    found = np.rint(np.clip(image.astype(np.float64), 0.0, 1.0) * 255).astype(np.uint8)
    return found.transpose(1, 2, 0) if len(found) == 3 else found[0]


def _inputs(entry: Entry) -> tuple[str, ...]:
    return ("clean", "adversarial") if entry.attacked else ("clean",)


def _asked(entry: Entry, target: Target, x: np.ndarray, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    place = {int(p): i for i, p in enumerate(entry.run.positions)}
    ids = torch.from_numpy(entry.run.sample_ids[[place[int(p)] for p in positions]])
    return torch.from_numpy(x).to(target.device), ids.to(target.device)


Row = tuple[str, str, tuple[Tile, ...]]


def given_row(entry: Entry, which: str, x: np.ndarray, chosen: list[int], bare: np.ndarray | None) -> Row:
    """Images [m, C, H, W] of a run as they came, its indices ``chosen``; ``bare``: the classifier's own answers [m]."""
    name = noun(entry, which)
    if bare is None:
        return (
            name,
            f"class by the {'defence' if entry.purified else 'classifier'}",
            _answered(entry, which, x, chosen),
        )
    tiles = []
    for i, index in enumerate(chosen):
        truth = int(entry.run.labels[index])
        alt = _alt(entry, f"{name} image", index)
        tiles.append(Tile(x[i], alt, _name(entry, int(bare[i])), int(bare[i]) == truth))
    return name, "class by the bare classifier", tuple(tiles)


def purified_row(entry: Entry, target: Target, which: str, x: np.ndarray, chosen: list[int]) -> Row:
    """The same, purified by the run's defence on its first evaluation draw; what all draws said stands below."""
    positions = entry.run.positions[chosen].tolist()
    images, ids = _asked(entry, target, x, positions)
    with torch.no_grad(), frozen(target, entry.run.protocol):
        draws = torch.full_like(ids, FIRST_DRAW)
        purified = target.purify(images, ids, draws, Domain.EVALUATION).float().cpu()
    original = x if which == "clean" else entry.run.images("clean", positions)
    found = image_quality(torch.from_numpy(original), purified)
    tiles = _answered(entry, which, purified.numpy(), chosen, "purified image")
    measured = []
    for i, tile in enumerate(tiles):
        words = [f"{float(found.psnr[i]):.1f} dB", f"{float(found.ssim[i]):.2f}"]
        words += [] if found.lpips is None else [f"{float(found.lpips[i]):.2f}"]
        measured.append(replace(tile, quality=" · ".join(words)))
    return f"{noun(entry, which)}, purified", "class by the defence", tuple(measured)


def noise_row(entry: Entry, positions: list[int]) -> Row:
    """What the attack added to the images at these positions, see `perturbation`."""
    before, after = (entry.run.images(which, positions) for which in ("clean", "adversarial"))
    shown, said = perturbation(after.astype(np.float64) - before)
    tiles = tuple(
        Tile(image, f"perturbation of image {p}") for image, p in zip(shown, positions, strict=True)
    )
    return "perturbation", said, tiles


def noun(entry: Entry, which: str) -> str:
    """What images of an input are called: "clean", "adversarial" or "corrupted"."""
    return "corrupted" if which == "adversarial" and entry.corrupted else which


def _answered(entry: Entry, which: str, x: np.ndarray, chosen: list[int], what: str = "") -> tuple[Tile, ...]:
    """Pictures [m, C, H, W] with what the recorded draws of these images said."""
    right, answers = entry.run.correct(which), majority(entry.run.predicted(which))
    tiles = []
    for image, index in zip(x, chosen, strict=True):
        n = right.shape[1]
        count = f" · {int(right[index].sum())}/{n}" if n > 1 else ""
        answer = int(answers[index])
        alt = _alt(entry, what or f"{noun(entry, which)} image", index)
        verdict = "tie" if answer == TIE else _name(entry, answer)
        tiles.append(Tile(image, alt, verdict + count, answer == int(entry.run.labels[index])))
    return tuple(tiles)


def _alt(entry: Entry, what: str, index: int) -> str:
    return (
        f"{what} {int(entry.run.positions[index])} of class {entry.class_names[int(entry.run.labels[index])]}"
    )


def _name(entry: Entry, index: int) -> str:
    return entry.class_names[index] if 0 <= index < len(entry.class_names) else f"class {index}"
