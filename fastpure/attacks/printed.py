"""What an attack's result looks like at a prompt and in a notebook."""

from __future__ import annotations

import re
from typing import Any

from ..shown import Card, per_image, spread

_UNSET = re.compile(r", \w+=None\b")
"""Settings of an attack's text that say nothing."""


def result_card(result: Any) -> Card:
    """What is shown of an `AttackResult`."""
    rows = [
        ("attack", _UNSET.sub("", result.attack)),
        ("clean", str(result.clean_accuracy)),
        ("robust", str(result.robust_accuracy)),
        ("distance", spread(result.distance)),
    ]
    if result.spent is not None and len(result.spent):
        rows.append(("spent", f"{float(result.spent.mean()):.4g} gradients per image"))
    if result.stopped:
        rows.append(("ended", result.stopped))
    rows += [("note", note) for note in result.notes]
    n, draws = result.robust_correct.shape
    more = [("judged", f"on {draws} draws" if draws > 1 else "once"), ("time", f"{result.seconds:.1f} s")]
    if result.execution is not None:
        more.append(("executed", str(result.execution)))
    columns = {
        "clean": result.clean_correct.double().mean(1),
        "robust": result.robust_correct.double().mean(1),
        "distance": result.distance,
    }
    return Card(
        f"AttackResult of {n} images",
        tuple(rows),
        tuple(more),
        (per_image("images: share of the draws that are right", tuple(columns), tuple(columns.values())),),
        tuple(map(str, result.warnings)),
    )
