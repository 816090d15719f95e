"""What a training command came to, and the files it leaves: weights and ``result.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from ..data import Dataset
from ..files import replace_file
from .config import TrainConfig
from .loop import Fit

__all__ = ["RESULT_FILE", "Outcome", "export", "notes"]

RESULT_FILE = "result.json"


@final
@dataclass(frozen=True)
class Outcome:
    """What a training command came to.

    Fields:
        fit: steps, seconds, whether it was resumed or interrupted, and the averaged network.
        weights: the exported file; None if the run was interrupted.
        table: the scores on held-out images, as lines of text.
    """

    fit: Fit
    weights: Path | None
    table: tuple[str, ...]


def notes(config: TrainConfig, dataset: Dataset, more: Mapping[str, str]) -> dict[str, str]:
    """Metadata of the exported file: data, its checksum, the optimisation, and ``more``."""
    return {
        "data": f"{dataset.name}/{dataset.split} {dataset.checksum}",
        "training": json.dumps(asdict(config), sort_keys=True),
        **more,
    }


def export(
    done: Fit, out: str | Path, name: str, save: Callable[[Path], Any], score: Any, table: tuple[str, ...]
) -> Outcome:
    """Write the weights with ``save`` and the scores as JSON, each atomically."""
    path = Path(out) / name
    save(path)
    scores = [asdict(each) for each in score] if isinstance(score, tuple) else asdict(score)
    result = {
        "steps": done.step,
        "seconds": round(done.seconds, 1),
        "parameters": _parameters(done.model),
        "held_out": scores,
    }
    replace_file(Path(out) / RESULT_FILE, (json.dumps(result, indent=1) + "\n").encode())
    return Outcome(done, path, table)


def _parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
