"""`fastpure attack`: adversarial images for a defended classifier, as a file other tools read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .experiment import Experiment, build

if TYPE_CHECKING:
    from ..attacks import AttackResult


@o.experiment_options
def attack(
    wanted: o.Request,
    out: Annotated[Path, typer.Option(help="Where to write the adversarial images (.npz).")] = Path(
        "adversarial.npz"
    ),
    batch_size: o.BatchSize = 64,
) -> None:
    """Attack images and save what comes out: x, x_adv, labels, ids, distances, verdicts, losses.

    The file is an ordinary NumPy archive; its images are float32 [N, C, H, W] in [0, 1], inside the budget. For
    accuracies with a protocol, in a file that survives interruptions, use `fastpure evaluate`.

    Example: fastpure attack --n 20 --method coup --attack pgd --eps 0.2 --out adversarial.npz
    """
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise OSError(f"`--out` must name a file in a folder that can be written, got {out}")
    experiment = build(wanted)
    if experiment.attack is None:
        raise ValueError("`--attack` must name an attack, got none")
    result = run(experiment, batch_size, wanted.device)
    save(out, experiment, result)
    typer.echo(f"{result}\nwrote {out}")


def run(experiment: Experiment, batch_size: int, device: str) -> AttackResult:
    """Attack all images, ``batch_size`` at a time, with a bar over images."""
    import torch

    from ..attacks import AttackResult
    from ..errors import whole
    from ..progress import Progress
    from ..purify.entry import door

    whole("batch-size", batch_size, 1)
    assert experiment.attack is not None
    data, parts = experiment.dataset, []
    first = torch.arange(1)
    images, ids = data.batch(first).to(device), data.sample_ids[first].to(device)
    data.fits(door(experiment.defense, images, ids).n_classes)
    per_image = max(experiment.attack.iterations(), 1)
    with Progress(len(data), "images", doing="attacking", fractions=True) as bar:
        for begin in range(0, len(data), batch_size):
            rows = torch.arange(begin, min(begin + batch_size, len(data)))

            def report(iteration: int, loss: float, first: int = begin, size: int = len(rows)) -> None:
                bar.to(first + size * min((iteration + 1) / per_image, 1.0), note=f"loss {loss:.4g}")

            x, y = data.batch(rows).to(device), data.labels[rows].to(device)
            parts.append(
                experiment.attack(
                    experiment.defense, x, y, sample_ids=data.sample_ids[rows].to(device), report=report
                )
            )
            bar.to(begin + len(rows))

    return AttackResult.joined(parts)


def save(path: Path, experiment: Experiment, result: AttackResult) -> None:
    """Write the archive atomically."""
    import json

    import numpy as np

    from ..evaluate.identity import describe_defense
    from ..files import replacing

    data = experiment.dataset
    text = json.dumps({"defense": describe_defense(experiment.defense), "attack": result.attack})
    with replacing(path) as file:
        np.savez_compressed(
            file,
            x=data.images.numpy(),
            x_adv=result.x_adv.numpy(),
            labels=data.labels.numpy(),
            sample_ids=data.sample_ids.numpy(),
            distance=result.distance.numpy(),
            clean_correct=result.clean_correct.numpy(),
            robust_correct=result.robust_correct.numpy(),
            losses=result.losses.numpy(),
            about=np.array(text),
        )
