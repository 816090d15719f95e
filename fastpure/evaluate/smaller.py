"""The smallest of several attacks' accuracies, as DiffPure and COUP tell AutoAttack's: by the tool, with an interval.

This is the published rule, which takes the smaller of two accuracies. `worst_of` is the stronger one, which takes the
worst image by image.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from ..errors import mistake
from ..intervals import Interval, wilson
from ..shown import Card, Shown
from .identity import canonical, differences
from .run import Run
from .statistics import check_alike

BUDGET = ("norm", "eps", "bound")
"""Settings of attacks that say which images they may return."""

VERSION = ("version", "attacks")
"""Settings in which the versions of an ensemble differ."""

CONFIDENCE = 0.95


@final
@dataclass(frozen=True, repr=False)
class SmallerOf(Shown):
    """The smallest robust accuracy of several runs of one defence.

    Attributes:
        attacks: what each run was attacked with, short.
        protocol: who decided.
        clean: accuracy on the originals, Wilson interval over images.
        accuracies: the robust one of each run, likewise.
        taken: which of them is the smallest, the first of several.
        robust: that accuracy. Its interval holds the smaller of the true accuracies with 95 %: from the lowest lower to
            the lowest upper bound of intervals that hold for all runs together (Bonferroni).
    """

    attacks: tuple[str, ...]
    protocol: str
    clean: Interval
    accuracies: tuple[Interval, ...]
    taken: int
    robust: Interval

    def _shown(self) -> Card:
        rows = [(name, str(found)) for name, found in zip(self.attacks, self.accuracies, strict=True)]
        return Card(
            f"SmallerOf {len(rows)} attacks: {self.robust}",
            (*rows, ("clean", str(self.clean)), ("protocol", f"{self.protocol}, {self.robust.n} images")),
        )

    def __str__(self) -> str:
        listed = [
            f"{name} {100 * accuracy.estimate:.1f} %"
            for name, accuracy in zip(self.attacks, self.accuracies, strict=True)
        ]
        if len(listed) == 1:
            return f"{self.protocol}, {self.robust.n} images: {self.attacks[0]} {self.robust}"
        which = "smaller" if len(listed) == 2 else "smallest"
        among = f"{', '.join(listed[:-1])} and {listed[-1]}"
        return f"{self.protocol}, {self.robust.n} images: {self.robust}, the {which} of {among}"


def smaller_of(runs: Sequence[Run]) -> SmallerOf:
    """The smallest robust accuracy of ``runs``, each under the protocol they share.

    Args:
        runs: finished runs of one defence on the same images under the same protocol and budget.

    Raises:
        ValueError: no runs, or other ones.
    """
    check_alike(runs)
    first = budget_of(runs[0])
    for run in runs[1:]:
        if other := differences(first, budget_of(run)):
            raise ValueError(mistake("runs", "of one budget", "; ".join(other)))
    values = [run.values("adversarial") for run in runs]
    n, sums = len(values[0]), [float(value.sum()) for value in values]
    accuracies = tuple(wilson(right, n, CONFIDENCE) for right in sums)
    taken, robust = smallest(sums, n)
    clean = runs[taken].values("clean")
    return SmallerOf(
        attacks=tuple(_called(run.identity["attack"]) for run in runs),
        protocol=str(runs[0].protocol),
        clean=wilson(float(clean.sum()), n, CONFIDENCE),
        accuracies=accuracies,
        taken=taken,
        robust=robust,
    )


def smallest(right: Sequence[float], n: int) -> tuple[int, Interval]:
    """Which of several numbers of right answers among ``n`` is the smallest, and its share: see `SmallerOf.robust`."""
    together = [wilson(one, n, 1 - (1 - CONFIDENCE) / len(right)) for one in right]
    taken = int(np.argmin(right))
    low, high = min(one.low for one in together), min(one.high for one in together)
    return taken, Interval(wilson(right[taken], n, CONFIDENCE).estimate, low, high, n, CONFIDENCE)


def versions_of(runs: Sequence[Run]) -> list[tuple[int, ...]]:
    """Positions of those runs that are versions of one published AutoAttack number, two or more each.

    They are finished, decided on one draw by AutoAttack's own check, and differ in nothing but the version.
    """
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        attack = run.identity["attack"]
        if not run.complete or run.protocol.rule != "one_shot" or attack is None:
            continue
        if attack["name"] != "AutoAttack" or attack["settings"].get("decision") != "legacy":
            continue
        rest: dict[str, Any] = copy.deepcopy(dict(run.identity))
        for name in VERSION:
            rest["attack"]["settings"].pop(name, None)
        groups.setdefault(canonical(rest), []).append(number)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def budget_of(run: Run) -> dict[str, Any]:
    """The settings of a run's attack that say which images it may return."""
    settings = run.identity["attack"]["settings"]
    return {name: settings[name] for name in BUDGET if name in settings}


def _called(attack: Mapping[str, Any]) -> str:
    """ "AutoAttack rand"; the members in place of a version that says nothing."""
    version, members = (attack["settings"].get(name) for name in VERSION)
    return " ".join((str(attack["name"]), *(members if members else [version] if version else [])))
