"""What purification does to a run's images, in numbers: distance, PSNR, SSIM, LPIPS where it is here, compression."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..diagnostics.compression import shrunk
from ..diagnostics.quality import ImageQuality, image_quality
from ..purify import Target
from .data import Entry
from .pictures import noun, purified_images


@final
@dataclass(frozen=True)
class Row:
    """One kind of images of a run against the originals, means over the images.

    Attributes:
        name: "clean, purified", "adversarial" or "adversarial, purified".
        l2, linf: distances from the originals in [0, 1] units.
        psnr: of the mean squared difference, in dB; infinite where there is none.
        ssim: structural similarity.
        lpips: perceptual distance, None where it was not measured.
        compression: |P(x_adv) - P(x)| / |x_adv - x|, both under the same noise; None but for attacked images purified.
        moved: images over which it is a mean: those that the attack moved.
    """

    name: str
    l2: float
    linf: float
    psnr: float
    ssim: float
    lpips: float | None = None
    compression: float | None = None
    moved: int = 0


@final
@dataclass(frozen=True)
class Quality:
    """The rows of one run over its first ``n`` images; ``note`` says why there is no LPIPS."""

    entry: Entry
    n: int
    rows: tuple[Row, ...]
    note: str


def quality(entry: Entry, target: Target, n: int) -> Quality:
    """Measure the first ``n`` images of a run, purified once by its defence on the first evaluation draw.

    Args:
        target: the defence of the run (its identity was compared); one that purifies.
    """
    positions = entry.run.positions[:n].tolist()
    x = torch.from_numpy(entry.run.images("clean", positions))
    clean = purified_images(entry, target, "clean", positions)
    found = [image_quality(x, clean)]
    rows = [_row("clean, purified", found[0], x)]
    if entry.attacked:
        name = noun(entry, "adversarial")
        x_adv = torch.from_numpy(entry.run.images("adversarial", positions))
        purified = purified_images(entry, target, "adversarial", positions)
        rows.append(_row(name, image_quality(x, x_adv), x))
        ratio = shrunk(x, x_adv, clean, purified)
        rows.append(_row(f"{name}, purified", image_quality(x, purified), x, ratio[~ratio.isnan()]))
    return Quality(entry, len(positions), tuple(rows), found[0].note)


def quality_table(measured: Iterable[Quality]) -> list[dict[str, Any]]:
    """A row per run and kind of images, with the fields of `Row`; None where something was not measured."""
    return [
        {"run": one.entry.key, "images": row.name, "n": one.n}
        | {name: getattr(row, name) for name in ("l2", "linf", "psnr", "ssim", "lpips", "compression")}
        | {"moved": None if row.compression is None else row.moved}
        for one in measured
        for row in one.rows
    ]


def notes(measured: Iterable[Quality]) -> list[str]:
    """Why LPIPS is missing, each reason once."""
    return list(dict.fromkeys(one.note for one in measured if one.note))


def _row(name: str, found: ImageQuality, x: Tensor, ratio: Tensor | None = None) -> Row:
    # Of the mean over images: one that was left alone has no finite PSNR of its own.
    squared = float(found.l2.square().mean()) / x[0].numel()
    return Row(
        name,
        float(found.l2.mean()),
        float(found.linf.mean()),
        -10.0 * math.log10(squared) if squared > 0 else math.inf,
        float(found.ssim.mean()),
        None if found.lpips is None else float(found.lpips.mean()),
        None if ratio is None or not len(ratio) else float(ratio.mean()),
        0 if ratio is None else len(ratio),
    )
