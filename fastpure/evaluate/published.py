"""Presets by the rule they were published with: every attack that it names, and the smallest accuracy of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from ..data import Dataset
from ..presets import Preset, Published
from ..purify import Target
from ..shown import Card, Shown
from .protocol import Protocol, make
from .run import Run
from .runner import evaluate
from .smaller import SmallerOf, smaller_of
from .summary import Report


@final
@dataclass(frozen=True, repr=False)
class PublishedReport(Shown):
    """What a preset came to by its own rule; ``print`` it.

    Attributes:
        reports: of each attack.
        smaller: the number that the paper would print, None for a part of the images.
        published: the number that it printed, None where it is not known.
    """

    reports: tuple[Report, ...]
    smaller: SmallerOf | None
    published: Published | None

    def _shown(self) -> Card:
        rows = [(report.attack or "no attack", str(report.robust or report.clean)) for report in self.reports]
        rows += [] if self.published is None else [("published", str(self.published))]
        number = "one part" if self.smaller is None else str(self.smaller.robust)
        return Card(f"PublishedReport of {len(self.reports)} attacks: {number}", tuple(rows))

    def __str__(self) -> str:
        lines = [f"{report}\n" for report in self.reports]
        if self.smaller is None:
            lines.append(
                "one part: put the files of each attack together with `fastpure merge`, then give all of them"
            )
            lines.append("to `fastpure compare`, which says what is the smaller of them")
        else:
            lines.append(f"number    {self.smaller}")
        if self.published is not None:
            lines.append(f"published {self.published}")
        return "\n".join(lines)


def protocol_of(preset: Preset, draws: int | None = None, **settings: Any) -> Protocol:
    """The protocol that a preset was published with; ``draws`` and settings as for `fastpure.protocols.make`.

    Raises:
        ValueError: the preset names none, or it has no such setting.
    """
    preset.deciding()
    assert preset.rule is not None
    return make(preset.rule.name, draws, **{**dict(preset.rule.settings), **settings})


def evaluate_published(
    preset: Preset,
    defense: nn.Module | Target,
    dataset: Dataset,
    out: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    shard: tuple[int, int] | None = None,
    **options: Any,
) -> PublishedReport:
    """Evaluate ``defense`` as the paper of ``preset`` did, and take the smallest accuracy of its attacks.

    Given again it continues where it was, as `evaluate` does.

    Args:
        preset: says which attacks decide by which rule.
        defense: ``preset.defense(...)``, or whatever is to be measured by that rule.
        dataset: images with labels and ids, such as ``preset.load_dataset(...)``.
        out: folder for the run files, one per attack, named after it.
        changes: settings of the attacks other than the published ones, such as ``batch_size``.
        protocol: the preset's own if None.
        shard: as for `evaluate`; a part has no number of its own.
        options: of `evaluate`: batch_size, progress, engine, workers.

    Raises:
        ValueError: the preset names no rule, or its attacks have no such setting.
        Others: as for `evaluate`.
    """
    rules = protocol_of(preset) if protocol is None else protocol
    attacks = preset.deciding(**(changes or {}))
    paths = [published_path(out, label, shard) for label in attacks]
    reports = tuple(
        evaluate(defense, dataset, attack, rules, path, shard=shard, **options)
        for attack, path in zip(attacks.values(), paths, strict=True)
    )
    number = preset.numbers[0] if preset.numbers else None
    if shard is not None and shard[1] > 1:
        return PublishedReport(reports, None, number)
    with ExitStack() as stack:
        runs = [stack.enter_context(Run.open(path, verify=False)) for path in paths]
        return PublishedReport(reports, smaller_of(runs), number)


def published_path(folder: str | Path, label: str, shard: tuple[int, int] | None) -> Path:
    """The run file of one of the attacks."""
    part = "" if shard is None else f"-{shard[0]}of{shard[1]}"
    return Path(folder) / f"{label}{part}.sqlite"
